"""What proplets are called: as identity has it, whatever they say; or as they say, where none is asked."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.manager.names import MAX_NAME_CHARACTERS, NamedClients, Naming, own_naming, says_the_same

words = st.sampled_from(["proplet-1", "proplet-2", "ward-3", "ward-4", "hospital", "north"])
ids = st.sampled_from([f"id-{number}" for number in range(6)])
tags = st.lists(words, max_size=4).map(tuple)
said = st.none() | st.fixed_dictionaries(
    {}, optional={"name": st.none() | words | st.text(), "tags": st.none() | st.lists(words)}
)


@st.composite
def named_clients(draw: st.DrawFn) -> NamedClients:
    """Clients of which no two have the same name, as at identity."""
    names = draw(st.dictionaries(ids, words, max_size=4))
    names = {id_: name for name, id_ in {name: id_ for id_, name in names.items()}.items()}
    return NamedClients({id_: Naming(name, draw(tags)) for id_, name in names.items()})


@given(named=named_clients(), says=st.dictionaries(ids, said))
def test_nobody_gets_by_what_it_says_a_name_or_tag_that_identity_gives_to_another(
    named: NamedClients, says: dict[str, Any]
) -> None:
    called = {id_: named.naming(id_, metadata) for id_, metadata in says.items()}
    given_tags = {tag for one in named.clients.values() for tag in one.tags}
    for id_, naming in called.items():
        known = named.clients.get(id_)
        if known is None:
            assert naming == Naming(own_naming(id_, None).name)
            continue
        assert naming.name == known.name
        assert given_tags & set(naming.tags) == set(known.tags)
        assert set(naming.tags) - set(known.tags) <= set((says[id_] or {}).get("tags") or ())
        assert len(naming.tags) == len(set(naming.tags))
    names = [naming.name for naming in called.values()]
    assert len(names) == len(set(names))


@given(named=named_clients(), id_=ids, metadata=said)
def test_what_is_not_taken_is_told_and_nothing_else(named: NamedClients, id_: str, metadata: Any) -> None:
    naming, own = named.naming(id_, metadata), own_naming(id_, metadata)
    has_name = own.name != own_naming(id_, None).name
    not_taken = (has_name and own.name != naming.name) or not set(own.tags) <= set(naming.tags)
    assert (named.explain_doubts(id_, metadata) is not None) == not_taken


def test_a_doubt_names_who_is_meant_and_the_remedy() -> None:
    named = NamedClients({"a": Naming("proplet-1", ("hospital",)), "b": Naming("ward-3")})
    doubt = named.explain_doubts("b", {"name": "proplet-1", "tags": ["hospital", "gpu"]})
    assert doubt is not None
    for text in ("'ward-3'", "'proplet-1' is a", "propeller device rename", "'hospital'", "device tag"):
        assert text in doubt
    assert "gpu" not in doubt
    assert "connect the client to the channel" in (named.explain_doubts("c", {"name": "proplet-1"}) or "")


def test_identitys_names_are_taken_whole() -> None:
    """Two that begin alike stay two; a proplet that says its own one, which is cut, says nothing wrong."""
    start = "x" * MAX_NAME_CHARACTERS
    named = NamedClients({"a": Naming(f"{start}a"), "b": Naming(f"{start}b")})
    assert {named.naming(id_, {"name": "y"}).name for id_ in "ab"} == {f"{start}a", f"{start}b"}
    assert named.explain_doubts("a", {"name": f"{start}a"}) is None


@pytest.mark.parametrize("told", [None, "", "  ", "a\0b", "a\nb"])
def test_without_an_identity_a_proplet_is_called_as_it_says(told: str | None) -> None:
    made = own_naming("p", {"name": told}).name
    assert re.fullmatch(r"[a-z]+-[a-z]+-[0-9]+", made)
    assert own_naming("p", None) == Naming(made)
    assert own_naming("p", {"name": " ward-3 ", "tags": ["gpu"]}) == Naming("ward-3", ("gpu",))


@pytest.mark.parametrize(
    "told", [None, [], {}, {"clients": None}, {"clients": ["a"]}, {"clients": {"a": {"name": "x"}}}]
)
def test_another_answer_is_refused(told: Any) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        NamedClients.read(told)


def test_what_is_said_is_compared_and_nothing_else() -> None:
    before = {"name": "a", "tags": ["x"], "location": "here"}
    assert says_the_same({**before, "location": "there"}, before)
    assert not says_the_same({**before, "name": "b"}, before)
    assert not says_the_same({**before, "tags": []}, before)
    assert not says_the_same(before, None)
