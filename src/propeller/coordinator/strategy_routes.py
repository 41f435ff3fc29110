"""The HTTP routes of strategies: which there are here, built in and installed, and their parameters."""

from typing import Any

from propeller.errors import NotFoundError
from propeller.fl.strategies import (
    StrategyLoadError,
    UnknownStrategyError,
    describe_strategy,
    strategy_names,
)
from propeller.web.app import Router


def strategy_routes() -> Router:
    """What experiments can name."""
    router = Router(prefix="/strategies")

    @router.get("")
    async def list_strategies() -> dict[str, Any]:
        return {"strategies": [_describe(name) for name in strategy_names()]}

    @router.get("/{name}")
    async def detail(name: str) -> dict[str, Any]:
        try:
            return describe_strategy(name).to_json()
        except UnknownStrategyError as error:
            raise NotFoundError(str(error)) from None

    return router


def _describe(name: str) -> dict[str, Any]:
    """A strategy; of one whose package cannot be loaded why."""
    try:
        return describe_strategy(name).to_json()
    except StrategyLoadError as error:
        return {"name": name, "error": str(error)}
