"""`TrainOnlyCallback`: a callback that puts something in place while an epoch trains, and takes it out however training ends."""

from __future__ import annotations

from fastai.callback.core import Callback

__all__ = ["TrainOnlyCallback"]


class TrainOnlyCallback(Callback):
    """Subclasses write `put_in` and `take_out`; the latter may come several times, also when nothing is in."""

    def put_in(self) -> None:
        raise NotImplementedError

    def take_out(self) -> None:
        raise NotImplementedError

    def before_train(self) -> None:
        self.take_out()
        self.put_in()

    def after_train(self) -> None:
        self.take_out()

    def after_cancel_train(self) -> None:
        self.take_out()

    def before_validate(self) -> None:
        # An error in training skips the two above: what is predicted after it must not find what training put in.
        self.take_out()
