"""Logistic regression by Flower's simulation, for ``benchmarks/simulation.py``: run by the Python of an environment with ``flwr[simulation]``.

    python flower_simulation.py CLIENTS ROUNDS SAMPLES FEATURES

The last line printed is JSON: ``clients_per_s``, from the first round on.
"""

import json
import sys
import time

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

CLIENTS, ROUNDS, SAMPLES, FEATURES = map(int, sys.argv[1:5])
moments = []


class LogReg(NumPyClient):
    """One epoch of batches of 16 on samples that it makes itself."""

    def __init__(self, number):
        source = np.random.default_rng(number)
        self.x = source.normal(size=(SAMPLES, FEATURES)).astype(np.float32)
        self.y = (self.x[:, 0] > 0).astype(np.float32)

    def fit(self, parameters, config):
        w, b = [np.array(each) for each in parameters]
        order = np.random.default_rng(0).permutation(SAMPLES)
        for at in range(0, SAMPLES, 16):
            rows = order[at : at + 16]
            x, y = self.x[rows], self.y[rows]
            slope = 1 / (1 + np.exp(-(x @ w + b))) - y
            w, b = w - 0.1 * x.T @ slope / len(rows), b - 0.1 * slope.mean()
        return [w, b], SAMPLES, {}


def client(context):
    return LogReg(int(context.node_config["partition-id"])).to_client()


class Timed(FedAvg):
    """Notes when each round ends."""

    def aggregate_fit(self, server_round, results, failures):
        moments.append((time.perf_counter(), len(results)))
        return super().aggregate_fit(server_round, results, failures)


def server(context):
    start = ndarrays_to_parameters([np.zeros(FEATURES), np.zeros(())])
    strategy = Timed(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=CLIENTS,
        min_available_clients=CLIENTS,
        initial_parameters=start,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))


run_simulation(
    server_app=ServerApp(server_fn=server),
    client_app=ClientApp(client_fn=client),
    num_supernodes=CLIENTS,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)
if len(moments) > 1:
    done = sum(count for _moment, count in moments[1:])
    print(json.dumps({"clients_per_s": done / (moments[-1][0] - moments[0][0])}))
else:
    print(json.dumps({"clients_per_s": 0.0}))
    sys.exit(1)
