"""Whether more or less of a metric is better, as far as its name says so."""

import re
from typing import Literal, TypeAlias

from propeller.protocol.strict import nearest_names

Goal: TypeAlias = Literal["max", "min"]

MARKED_METRICS = ("loss", "accuracy")
"""By which of an evaluation's metrics the best version is marked where ``stop.metric`` names none: by the first that it has."""


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LESS = _words_of(
    "loss losses error errors err mse rmse mae mape smape msle nll logloss crossentropy entropy perplexity ppl brier wer cer"
    " hinge deviance divergence distance regret fid"
)
_MORE = _words_of(
    "accuracy accuracies acc auc auroc auprc roc ap map f1 fscore fbeta precision recall sensitivity specificity r2 iou miou"
    " jaccard dice mcc kappa bleu rouge meteor ndcg mrr psnr ssim reward"
)
_TURNING = _words_of("neg negative minus inverse non")
"""With one of these, a name may mean the opposite of its other words."""

_HINTED = ("accuracy", "loss", "error", "precision", "recall", "perplexity")
"""What a name that says nothing may be a misspelling of."""


def goal_of(metric: str) -> Goal | None:
    """What is better of a metric; ``None`` if its name does not say so, or says both.

    The name is taken apart into words, as ``val_loss`` and ``valLoss`` into ``val`` and ``loss``.
    """
    words = _words(metric)
    goals = {goal for word in words if (goal := _goal_of_word(word)) is not None}
    return goals.pop() if len(goals) == 1 and _TURNING.isdisjoint(words) else None


def explain_missing_goal(metric: str) -> str:
    """What to do about a metric whose name says nothing."""
    words = _words(metric)
    near = [nearest_names(word, _HINTED) for word in words]
    meant = next((names[0] for names in near if names), None)
    hint = "" if meant is None or meant in words else f"; or did you mean {meant!r}?"
    return f'goal is missing: the name {metric!r} does not say what is better; add goal = "max" or goal = "min"{hint}'


def _words(metric: str) -> list[str]:
    """The words of a name, in small letters."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", metric)
    return re.findall(r"[^\W_]+", apart.casefold())


def _goal_of_word(word: str) -> Goal | None:
    for one in (word, word.rstrip("0123456789")):
        if one in _LESS:
            return "min"
        if one in _MORE:
            return "max"
    return "min" if word.endswith(("loss", "error")) else None
