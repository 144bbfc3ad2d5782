"""The names that `from fatai.all import *` brings are promises; a file lists them, so that changes are seen."""

from pathlib import Path

import fatai.all

LIST = Path(__file__).with_name("public_names.txt")
MAX_NAMES = 170


def test_the_list_holds_the_names_that_fatai_adds():
    """After a deliberate change, write the new list: the difference is what users see change."""
    assert sorted(fatai.all.OWN_NAMES) == LIST.read_text(encoding="utf-8").split()


def test_every_name_exists_and_none_of_fastai_is_replaced():
    assert all(hasattr(fatai.all, name) for name in fatai.all.__all__)
    assert not set(fatai.all.FASTAI_NAMES) & set(fatai.all.OWN_NAMES)


def test_the_list_stays_short_enough_to_read():
    assert len(fatai.all.OWN_NAMES) <= MAX_NAMES


def test_every_public_name_of_the_package_is_among_them():
    names = set(fatai.__all__) - {"__version__"}
    assert names <= set(fatai.all.OWN_NAMES)


def test_the_star_brings_fastai_and_nothing_private():
    names = {}
    exec("from fatai.all import *", names)
    assert {"fat_learner", "lwlrap", "Learner", "CSVLogger", "Path", "torch"} <= set(names)
    assert not [n for n in names if n.startswith("_") and n != "__builtins__"] and "warnings" not in names
