"""A metric with prescribed values, for tests of callbacks that monitor one."""

from fastai.learner import Metric


class ScriptedMetric(Metric):
    """Return the next of `values` after each epoch."""

    name = ""

    def __init__(self, values, name="lwlrap"):
        self.values, self.name = iter(values), name

    def accumulate(self, learn):
        pass

    @property
    def value(self):
        return next(self.values)
