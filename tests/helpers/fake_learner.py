"""A metric whose values are told beforehand."""

from fastai.learner import Metric


class Told(Metric):
    """Says the next of `values` after each epoch."""

    name = ""

    def __init__(self, values, name="lwlrap"):
        self.values, self.name = iter(values), name

    def accumulate(self, learn):
        pass

    @property
    def value(self):
        return next(self.values)
