# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=1.26", "scikit-learn>=1.4"]
#
# [tool.propeller]
# native = true
# ///
"""Logistic regression of scikit-learn: put an estimator of your own in its place.

The lines above make it a native program, which each device runs with its own Python, and say what that must have.
`propeller try train.py` runs it here, confined as on a device.
"""

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from propeller.program import Evaluation, Update, evaluate, initial_model, train

COLUMNS = 6  # of the data files, beside the label
CLASSES = np.array([0, 1])


def classifier(model, hyperparams, seed):
    """An estimator that goes on from the round's model."""
    lr = float(hyperparams.get("lr", 0.01))
    made = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=lr, random_state=seed % 2**32)
    made.classes_, made.n_features_in_, made.t_ = CLASSES, COLUMNS, 1.0
    made.coef_, made.intercept_ = model["coef"], model["intercept"]
    return made


def measure(made, x, y):
    return {"loss": log_loss(y, made.predict_proba(x), labels=CLASSES), "accuracy": made.score(x, y)}


@initial_model  # where training starts: `model.file = "train.py"` in experiment.toml
def first(hyperparams):
    return {"coef": np.zeros((1, COLUMNS), np.float32), "intercept": np.zeros(1, np.float32)}


@train
def fit(model, data, hyperparams, ctx):
    made = classifier(model, hyperparams, ctx.seed)
    for _ in range(hyperparams.get("epochs", 1)):
        made.partial_fit(data.x, data.y)
    print(f"trained on {len(data)} samples")  # appears in the proplet's log
    metrics = measure(made, data.x, data.y)
    return Update({"coef": made.coef_, "intercept": made.intercept_}, len(data), metrics)


@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(len(data), measure(classifier(model, hyperparams, ctx.seed), data.x, data.y))
