"""Readable names for proplets, made from their ids, so that the same proplet always has the same one."""

import hashlib

_ADJECTIVES = (
    "amber azure bold brave bright brisk calm clear clever cosy crisp daring eager early fair fast fine firm "
    "fond free fresh gentle glad golden grand green happy hardy honest jolly keen kind late light lively loyal "
    "lucky mellow merry mild modest neat noble patient plain proud quick quiet ready rapid robust sharp shiny "
    "silent simple steady still sunny swift tidy warm wise"
)
_NOUNS = (
    "acorn badger beacon birch brook canyon cedar cliff cloud comet coral crane creek delta dune eagle elm ember "
    "falcon fern field finch fjord forest fox garden glacier harbor hawk heron hill island jay lagoon lake larch "
    "maple marsh meadow moon moss mountain oak otter owl pebble pine plover pond prairie raven reef ridge river "
    "robin sparrow spruce summit tern valley willow wren"
)


def name_of(proplet_id: str) -> str:
    """A name such as ``calm-otter-41``."""
    digest = hashlib.sha256(proplet_id.encode()).digest()
    adjectives, nouns = _ADJECTIVES.split(), _NOUNS.split()
    adjective, noun = adjectives[digest[0] % len(adjectives)], nouns[digest[1] % len(nouns)]
    return f"{adjective}-{noun}-{digest[2] % 100}"
