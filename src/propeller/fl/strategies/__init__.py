"""Strategies: how the updates of a round become the next model."""

from propeller.fl.strategies.aggregation import (
    PART_BYTES,
    Aggregated,
    NoUpdatesError,
    aggregate,
    aggregate_round,
    make_plan,
    parts_of,
)
from propeller.fl.strategies.catalog import (
    Description,
    Parameter,
    ParameterError,
    StrategyLoadError,
    UnknownStrategyError,
    create_strategy,
    describe_strategies,
    describe_strategy,
    read_strategy,
    strategy_names,
)
from propeller.fl.strategies.contribution import (
    Contribution,
    StrategyInputError,
    UpdateError,
    require_metric,
    require_steps,
)
from propeller.fl.strategies.fedavg import FedAvg
from propeller.fl.strategies.measurement import Measurement
from propeller.fl.strategies.part import PartAggregation
from propeller.fl.strategies.strategy import EXTRA, Block, Measure, Measured, Plan, ServerState, Strategy

__all__ = [
    "EXTRA",
    "PART_BYTES",
    "Aggregated",
    "Block",
    "Contribution",
    "Description",
    "FedAvg",
    "Measure",
    "Measured",
    "Measurement",
    "NoUpdatesError",
    "Parameter",
    "ParameterError",
    "PartAggregation",
    "Plan",
    "ServerState",
    "Strategy",
    "StrategyInputError",
    "StrategyLoadError",
    "UnknownStrategyError",
    "UpdateError",
    "aggregate",
    "aggregate_round",
    "create_strategy",
    "describe_strategies",
    "describe_strategy",
    "make_plan",
    "parts_of",
    "read_strategy",
    "require_metric",
    "require_steps",
    "strategy_names",
]
