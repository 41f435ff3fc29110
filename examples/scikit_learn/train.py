# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=1.26", "scikit-learn>=1.4"]
#
# [tool.propeller]
# native = true
# ///
"""Logistic regression of scikit-learn on handwritten digits: a native program, run by each device's own Python.

The model's tensors are the estimator's: ``coef`` (digits, pixels) and ``intercept`` (digits).
"""

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from propeller.program import Evaluation, Update, evaluate, train

DIGITS = np.arange(10)


def classifier(model, hyperparams, seed):
    """An estimator that goes on from the round's model."""
    made = SGDClassifier(
        loss="log_loss",
        alpha=hyperparams.get("alpha", 1e-4),
        learning_rate="constant",
        eta0=hyperparams.get("lr", 0.01),
        random_state=seed % 2**32,
    )
    made.classes_ = DIGITS
    made.coef_, made.intercept_ = model["coef"].astype("float32"), model["intercept"].astype("float32")
    made.n_features_in_, made.t_ = made.coef_.shape[1], 1.0
    return made


def measured(made, data):
    """Loss and accuracy on a device's samples."""
    return {
        "loss": log_loss(data.y, made.predict_proba(data.x), labels=DIGITS),
        "accuracy": made.score(data.x, data.y),
    }


@train
def fit(model, data, hyperparams, ctx):
    made = classifier(model, hyperparams, ctx.seed)
    for _ in range(hyperparams.get("epochs", 1)):
        made.partial_fit(data.x, data.y)
    return Update({"coef": made.coef_, "intercept": made.intercept_}, len(data), measured(made, data))


@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(len(data), measured(classifier(model, hyperparams, ctx.seed), data))
