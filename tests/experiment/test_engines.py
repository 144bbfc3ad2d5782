"""Ray, Dask and Spark, really started: the numbers of `predict`, with a killed worker and an unreadable sound."""

import os
import shutil
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pandas as pd
import psutil
import pytest

from fatai.experiment.bulk_predict import predict_to_csv
from fatai.experiment.parts import predict_in_parts
from fatai.experiment.tag_batch import TagBatch

pytestmark = pytest.mark.slow

N, ROWS = 500, 25
WORKERS = {"ray": "MapWorker", "dask": "distributed"}


class KillAWorker(threading.Thread):
    """Kill one process of an engine as soon as a part is finished."""

    def __init__(self, folder, word):
        super().__init__(daemon=True)
        self.folder, self.word, self.killed, self.stop = folder, word, None, threading.Event()

    def run(self):
        while not self.stop.wait(0.05):
            if any(self.folder.glob("part-*.parquet")):
                for process in psutil.Process().children(recursive=True):
                    if self._computes(process):
                        os.kill(process.pid, signal.SIGKILL)
                        self.killed = process.pid
                        return

    def _computes(self, process):
        try:
            command = " ".join(process.cmdline())
            if self.word == "distributed":  # a child of the nanny, started by spawn
                return "spawn_main" in command and process.memory_info().rss > 2e8
            return self.word in command
        except psutil.Error:
            return False


@pytest.fixture(scope="module")
def table(sample, tmp_path_factory):
    """500 names of the clips of the sample, as hard links, one of them missing."""
    folder = tmp_path_factory.mktemp("many")
    sources = sorted((sample / "test").iterdir())
    paths = [folder / f"{k:03}.ogg" for k in range(N)]
    for k, path in enumerate(paths):
        if k != 77:
            try:
                os.link(sources[k % len(sources)], path)
            except OSError:
                shutil.copy(sources[k % len(sources)], path)
    return pd.DataFrame({"fname": [path.name for path in paths], "path": [str(path) for path in paths]})


@pytest.fixture(scope="module")
def expected(tiny_run, table, tmp_path_factory):
    """Predictions of this process in the same parts; the last digit depends on which sounds share a batch."""
    folder = tmp_path_factory.mktemp("expected")
    predict_in_parts(tiny_run.out, table, folder / "tags.csv", rows=ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict_to_csv(tiny_run.out, table, folder / "plain.csv")
    found, plain = (pd.read_csv(folder / name).set_index("fname") for name in ("tags.csv", "plain.csv"))
    assert list(found["status"]) == list(plain["status"])
    np.testing.assert_allclose(found.drop(columns="status"), plain.drop(columns="status"), atol=1e-6)
    return folder / "tags.csv"


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_an_engine_gives_the_bytes_of_predict_though_a_worker_dies(tiny_run, table, expected, tmp_path, engine):
    pytest.importorskip({"ray": "ray", "dask": "distributed"}[engine])
    out = tmp_path / "tags.csv"
    killer = KillAWorker(tmp_path / "tags.csv.parts", WORKERS[engine])
    killer.start()
    try:
        start = time.monotonic()
        written = predict_in_parts(tiny_run.out, table, out, engine=engine, rows=ROWS, n_workers=2)
    finally:
        killer.stop.set()
    print(f"{engine}: {N} sounds in {time.monotonic() - start:.1f} s, killed process {killer.killed}")
    assert killer.killed is not None
    assert written == (N, 1)
    assert out.read_bytes() == expected.read_bytes()


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs a JVM")
def test_spark_gives_the_numbers_of_predict(tiny_run, table, expected, monkeypatch):
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    sql = pytest.importorskip("pyspark.sql")
    spark = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        tagger = TagBatch(tiny_run.out)
        columns = ["fname string", "path string", *(f"`{tag}` double" for tag in tagger.tags)]
        schema = ", ".join([*columns, "status string", "reason string"])
        found = spark.createDataFrame(table).mapInPandas(tagger.map, schema).toPandas()
    finally:
        spark.stop()
    wanted = pd.read_csv(expected)
    found = found.set_index("fname").loc[wanted["fname"]]
    np.testing.assert_allclose(found[list(tagger.tags)], wanted[list(tagger.tags)], atol=1e-6)
    assert list(found["status"]) == list(wanted["status"])
