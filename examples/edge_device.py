"""Learn to tag a file with onnxruntime alone, as on a small device: python examples/edge_device.py MODEL FILE.

MODEL is what `fatai-submit export RUN model.onnx` writes: front end and network as one graph, with the tags, the rate
and the length of a window in its metadata. Only numpy, onnxruntime and soundfile are imported, and memory holds one
window, whatever the length of FILE. Without arguments a narrow network is first trained on the bundled clips for three
epochs and exported, which has learned little; 18 s of processor time.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile


def main(model: str, file: str, top: int = 5) -> dict[str, float]:
    """Print and return the tags of a file with their mean probability over its windows, the most probable first."""
    session = onnxruntime.InferenceSession(model)
    notes = session.get_modelmeta().custom_metadata_map
    samples, rate = int(notes["samples"]), int(notes["sample_rate"])
    if soundfile.info(file).samplerate != rate:
        raise SystemExit(f"{file} has {soundfile.info(file).samplerate} Hz; resample it to {rate} Hz")
    # Windows that overlap by half; the last one ends with zeros.
    windows = soundfile.blocks(
        file, blocksize=samples, overlap=samples // 2, fill_value=0, dtype="float32", always_2d=True
    )
    probs = [session.run(None, {"wave": window.mean(1)[None]})[0][0] for window in windows]
    mean = dict(zip(json.loads(notes["tags"]), np.mean(probs, 0).tolist(), strict=True))
    ranked = dict(sorted(mean.items(), key=lambda pair: -pair[1]))
    print(f"{file}: {len(probs)} windows of {samples / rate:g} s")
    for tag, prob in list(ranked.items())[:top]:
        print(f"{prob:.2f}  {tag}")
    return ranked


def make_model(folder: Path) -> tuple[Path, Path]:
    """Train a small network and export it, as another machine would; return its path and that of a file to tag."""
    from fatai.all import export_onnx, fat_sample, load_recipe, run_recipe
    from fatai.experiment.run_folder import trained_model

    recipe = load_recipe("quick").override(arch="m1", width=0.125, epochs=3, crop_s=1.0, n_views=1)
    run = run_recipe(fat_sample(), recipe, folder / "run", predict_test=False)
    export_onnx([trained_model(run.out, fold) for fold in (0, 1)], folder / "model.onnx")
    return folder / "model.onnx", sorted((fat_sample() / "test").iterdir())[0]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as scratch:
            # In a new process, which imports nothing of fatai.
            subprocess.run([sys.executable, __file__, *map(str, make_model(Path(scratch)))], check=True)
