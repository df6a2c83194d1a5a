# The public names, a line each: read by type checkers and editors, and by __init__.py.
# A name must not be that of a room (a module or folder of ghn_jax), unless, as finetune.py, it cannot be imported.

from ghn_jax.finetuning.loop import Finetuned as Finetuned
from ghn_jax.finetuning.loop import finetune as finetune
from ghn_jax.finetuning.recipe import Recipe as Recipe
from ghn_jax.models.before_training import add_noise as add_noise
from ghn_jax.models.before_training import orthogonalize as orthogonalize
from ghn_jax.predict import Prediction as Prediction
from ghn_jax.predict import Report as Report
from ghn_jax.predict import graph_of as graph_of
from ghn_jax.predict import predict_parameters as predict_parameters
from ghn_jax.pretrained import TrainedGHN as TrainedGHN
from ghn_jax.pretrained import list_ghns as list_ghns
from ghn_jax.pretrained import load as load
from ghn_jax.targets import list_targets as list_targets
from ghn_jax.targets import target as target
from ghn_jax.tracing.batch_norm import apply_by_batch as apply_by_batch
from ghn_jax.tracing.batch_norm import fill_running_statistics as fill_running_statistics
from ghn_jax.tracing.errors import UnsupportedModel as UnsupportedModel
from ghn_jax.tracing.models import Function as Function

__version__: str
__all__: list[str]
