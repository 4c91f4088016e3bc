"""What the demo trains: a small network on scikit-learn's digits, step by step."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy
from attrs import define, field, frozen
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from adp_async.entities.runs import Dataset, DatasetInput, InputTag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Digits", "Training"]

SEED = 7
BATCH_SIZE = 32
CLASSES = tuple(range(10))
#: The precision of a class that is never predicted, as in the first epoch.
UNDEFINED = math.nan


@frozen(eq=False)
class Digits:
    """1,797 handwritten digits of 8 by 8 pixels, a fifth of them kept for testing."""

    pixels: NDArray[Any]
    labels: NDArray[Any]
    test_pixels: NDArray[Any]
    test_labels: NDArray[Any]

    @classmethod
    def load(cls) -> Digits:
        pixels, labels = load_digits(return_X_y=True)
        train, test, train_labels, test_labels = train_test_split(
            pixels / 16.0, labels, test_size=0.2, stratify=labels, random_state=SEED
        )
        return cls(train, train_labels, test, test_labels)

    def as_inputs(self) -> list[DatasetInput]:
        """Both parts, as a run's inputs."""
        return [
            _input("training", self.pixels, self.labels),
            _input("testing", self.test_pixels, self.test_labels),
        ]


def _input(context: str, pixels: NDArray[Any], labels: NDArray[Any]) -> DatasetInput:
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    dataset = Dataset(
        name=f"digits-{context}",
        digest=digest[:16],
        source_type="code",
        source=json.dumps({"function": "sklearn.datasets.load_digits", "seed": SEED}),
        profile=json.dumps({"num_rows": len(pixels), "num_features": pixels.shape[1]}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


@define(eq=False)
class Training:
    """Stochastic gradient descent with momentum, one mini-batch a step."""

    digits: Digits = field(factory=Digits.load)
    network: MLPClassifier = field(init=False)
    step: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.network = MLPClassifier(
            (64, 32), solver="sgd", learning_rate_init=0.05, momentum=0.9, random_state=SEED
        )

    @property
    def params(self) -> dict[str, object]:
        """The network's parameters, to log."""
        network = self.network
        return {
            "model": type(network).__name__,
            "hidden_layers": network.hidden_layer_sizes,
            "activation": network.activation,
            "learning_rate": network.learning_rate_init,
            "momentum": network.momentum,
            "l2": network.alpha,
            "batch_size": BATCH_SIZE,
            "seed": SEED,
        }

    @property
    def steps_an_epoch(self) -> int:
        return len(self.digits.labels) // BATCH_SIZE

    def epoch(self) -> Iterator[dict[str, float]]:
        """Train one epoch, in random order; yields what each step measured."""
        order = numpy.random.default_rng((SEED, self.step)).permutation(len(self.digits.labels))
        for start in range(0, self.steps_an_epoch * BATCH_SIZE, BATCH_SIZE):
            self.step += 1
            yield self._train(order[start : start + BATCH_SIZE])

    def _train(self, chosen: NDArray[Any]) -> dict[str, float]:
        pixels, labels = self.digits.pixels[chosen], self.digits.labels[chosen]
        before = [weights.copy() for weights in getattr(self.network, "coefs_", ())]
        self.network.partial_fit(pixels, labels, classes=CLASSES)
        chances = self.network.predict_proba(pixels)
        of_the_right = chances[numpy.arange(len(labels)), labels]
        return {
            "train/loss": float(self.network.loss_),
            "train/accuracy": float(numpy.mean(chances.argmax(axis=1) == labels)),
            "train/confidence": float(numpy.mean(of_the_right)),
            "train/least_confidence": float(numpy.min(of_the_right)),
            **self._weights(before),
        }

    def _weights(self, before: list[NDArray[Any]]) -> dict[str, float]:
        """How large each layer's weights are, and how far this step moved them."""
        measured: dict[str, float] = {}
        for layer, weights in enumerate(self.network.coefs_):
            moved = weights - before[layer] if before else weights
            measured[f"layer {layer}/weights"] = float(numpy.linalg.norm(weights))
            measured[f"layer {layer}/update"] = float(numpy.linalg.norm(moved))
        return measured

    def test(self) -> dict[str, float]:
        """Loss and accuracy on the digits kept for testing; precision, recall, F1 of each class."""
        labels = self.digits.test_labels
        chances = self.network.predict_proba(self.digits.test_pixels)
        found = chances.argmax(axis=1)
        measured = {
            "test/loss": float(log_loss(labels, chances, labels=CLASSES)),
            "test/accuracy": float(accuracy_score(labels, found)),
        }
        scores = precision_recall_fscore_support(
            labels, found, labels=CLASSES, zero_division=UNDEFINED
        )
        for name, values in zip(("precision", "recall", "f1"), scores, strict=False):
            for digit, value in enumerate(values):
                measured[f"test/{name}/{digit}"] = float(value)
        return measured
