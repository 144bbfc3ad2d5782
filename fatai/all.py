"""The notebook door: `from fatai.all import *` brings everything that a user types, and fastai's own vocabulary."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    from fastai.basics import *
    from fastai.callback.all import *

from fatai.augment.change import *
from fatai.augment.effects import *
from fatai.augment.masks import *
from fatai.augment.mixer import *
from fatai.augment.mixing import *
from fatai.augment.mixtures import *
from fatai.augment.on_items import *
from fatai.augment.on_spec import *
from fatai.augment.on_wave import *
from fatai.augment.show import *
from fatai.data.blocks import *
from fatai.data.cache import *
from fatai.data.download import *
from fatai.data.fat2019 import *
from fatai.data.folds import *
from fatai.data.labels import *
from fatai.data.normalise import *
from fatai.data.sampling import *
from fatai.data.scan import *
from fatai.data.show import *
from fatai.data.tensors import *
from fatai.errors import *
from fatai.infer.blends import *
from fatai.infer.calibrate import *
from fatai.infer.ensemble import *
from fatai.infer.guard import *
from fatai.infer.members import *
from fatai.infer.kept_views import *
from fatai.infer.predictions import *
from fatai.infer.tta import *
from fatai.infer.views import *
from fatai.models import *
from fatai.models.catalogue import *
from fatai.models.checkpoints import *
from fatai.recipes.preview import *
from fatai.recipes.recipe import *
from fatai.recipes.finished import *
from fatai.recipes.fold import fit_stage
from fatai.recipes.run import *
from fatai.registry import *
from fatai.score.bootstrap import *
from fatai.score.calibration import *
from fatai.score.ranking import *
from fatai.score.reliability import *
from fatai.score.retrieval import *
from fatai.score.thresholds import *
from fatai.sound.channels import *
from fatai.sound.files import *
from fatai.sound.front_ends import *
from fatai.sound.streams import *
from fatai.sound.waveform import *
from fatai.train.callbacks import *
from fatai.train.crossval import *
from fatai.train.history import *
from fatai.train.keeping import *
from fatai.train.ladder import *
from fatai.train.learner import *
from fatai.train.losses import *
from fatai.train.lr_search import *
from fatai.train.metrics import *
from fatai.train.noisy import *
from fatai.train.precision import *
from fatai.train.resume import *
from fatai.train.schedules import *
from fatai.train.suspects import *
from fatai.train.weights import *
from fatai.timing import *
