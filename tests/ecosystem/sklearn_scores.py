"""scikit-learn on a cluster gives the same scores as on one processor: ``python tests/ecosystem/sklearn_scores.py``.

Exit code 1 and what differs, if something does.
"""

from __future__ import annotations

import sys
from typing import Any

import joblib
import numpy
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from zdist import Client
from zdist.integrations.joblib import ZdistBackend

X, y = make_classification(n_samples=600, n_features=240, n_informative=12, random_state=0)  # 1.1 MB: is sent once


def grid_search() -> Any:
    """Scores of each candidate and fold, and what the best one predicts."""
    search = GridSearchCV(SVC(random_state=0), {"C": [0.1, 1, 10], "gamma": ["scale", 1e-3]}, cv=3, n_jobs=-1)
    search.fit(X, y)
    scores = [search.cv_results_[f"split{i}_test_score"] for i in range(3)]
    return numpy.array(scores), search.best_params_, search.predict(X)


def cross_validation() -> Any:
    """Scores of each fold of a pipeline."""
    return cross_val_score(make_pipeline(StandardScaler(), LogisticRegression()), X, y, cv=6, n_jobs=-1)


def random_forest() -> Any:
    """Probabilities and importances from trees that were grown apart."""
    forest = RandomForestClassifier(n_estimators=60, random_state=0, n_jobs=-1).fit(X, y)
    return forest.predict_proba(X), forest.feature_importances_


def forests_in_a_search() -> Any:
    """Parallel within parallel."""
    forest = RandomForestClassifier(n_estimators=20, random_state=0, n_jobs=-1)
    search = GridSearchCV(forest, {"max_depth": [2, 4]}, cv=2, n_jobs=-1).fit(X, y)
    return search.cv_results_["mean_test_score"], search.best_params_


class Counting(ZdistBackend):
    """Counts the batches that go to the cluster."""

    batches = 0

    def submit(self, func: Any, callback: Any = None) -> None:
        Counting.batches += 1
        super().submit(func, callback)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return numpy.array_equal(a, b) if isinstance(a, numpy.ndarray) else bool(a == b)


def main() -> int:
    wrong = 0
    with Client(n_workers=2, threads_per_worker=2):
        for case in (grid_search, cross_validation, random_forest, forests_in_a_search):
            with joblib.parallel_config("sequential"):
                expected = case()
            for options in ({}, {"scatter": [X, y]}):
                Counting.batches = 0
                with joblib.parallel_config(Counting(**options)):
                    found = case()
                verdict = "the same" if same(expected, found) else "DIFFERENT"
                how = "scattered" if options else ""
                print(f"{case.__name__:20} {how:9} {Counting.batches:4} batches on the cluster, results are {verdict}")
                wrong += verdict == "DIFFERENT" or not Counting.batches
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
