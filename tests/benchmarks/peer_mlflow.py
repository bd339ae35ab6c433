"""The model that `mlflow models serve` runs, written as MLflow's models from code: images as base64 in a column."""

import base64

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from tests.benchmarks.peer_model import Reader


class Images(PythonModel):
    def load_context(self, context):
        self.read = Reader()

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return self.read([base64.b64decode(text) for text in model_input["image"]])


mlflow.models.set_model(Images())
