"""Recipes run from end to end: folds, stages, predictions, run folders, ensembles of runs, searches."""
