"""Malicious or malformed tables and recipes, by their fault."""

from __future__ import annotations

__all__ = ["recipes", "tables"]


def tables(header: str, row: str, *, labels: bool) -> dict[str, bytes]:
    """Return tables that begin with `header` and `row`; with `labels` the second cell holds tags."""
    good = f"{header}\n{row}\n"
    name, _, rest = row.partition(",")
    made = {
        "empty": "",
        "one byte": "x",
        "only a mark": "\ufeff",
        "only a header": f"{header}\n",
        "the header twice": f"{header}\n{header}\n",
        "zero bytes": good.replace(name, f"{name[:3]}\0{name[3:]}"),
        "nothing but zero bytes": "\0" * 5000,
        "an unclosed quote": f'{header}\n"{row}\n' + f"{row}\n" * 50,
        "a quote within": f'{header}\na"b"c,{rest}\n',
        "an unclosed quote at the end": f'{good}"',
        "a huge cell": f"{header}\n{'n' * 300_000},{rest}\n",
        "a huge quoted cell": header + '\n"' + "n,\n" * 300_000 + f'",{rest}\n',
        "a million columns": f"{header},{','.join(map(str, range(10**6)))}\n{row}\n",
        "a million unnamed columns": f"{header}{',' * 10**6}\n",
        "a row of a million cells": f"{header}\n{row}{',' * 10**6}\n",
        "a million blank lines": f"{header}\n" + "\n" * 10**6 + f"{row}\n",
        "a doubled row": f"{good}{row}\n",
        "doubled columns": f"{header},{header}\n{row},{row}\n",
        "no fname": good.replace("fname", "file"),
        "semicolons": good.replace(",", ";"),
        "tabs": good.replace(",", "\t"),
        "a formula": f"{header}\n=cmd|'/c calc'!A1,{rest}\n",
        "ragged rows": f"{header}\n{row},x,y\n{name}\n",
        "a path traversal": f"{header}\n../../../../etc/passwd,{rest}\n",
        "an absolute name": f"{header}\n/etc/passwd,{rest}\n",
        "a drive": f"{header}\nC:\\x.wav,{rest}\n",
        "a long name": f"{header}\n{'n' * 5000}.wav,{rest}\n",
        "no name": f"{header}\n,{rest}\n",
        "a device": f"{header}\n../../../../../../../dev/zero,{rest}\n",
        "lone carriage returns": good.replace("\n", "\r"),
        "format strings": f"{header}\n{{0}}%s%n$(id),{rest}\n",
        "escapes": f"{header}\n\x1b]0;x\x07\x1b[2J,{rest}\n",
        "right to left": f"{header}\n\u202egpj.wav,{rest}\n",
        "names of folders": f"{header}\n.,{rest}\n..,{rest}\n",
        "a dash": f"{header}\n--help,{rest}\n",
        "spaces": f"{header}\n   ,{rest}\n",
        "half of it": good[: len(good) // 2],
    }
    if labels:
        made |= {
            "a hundred thousand labels": f'{header}\n{name},"' + ",".join(f"t{k}" for k in range(10**5)) + '"\n',
            "a million commas": f'{header}\n{name},"' + "," * 10**6 + '"\n',
            "a strange label": f"{header}\n{name},{'x' * 10_000}\n",
        }
    else:
        head, _, _ = row.rpartition(",")
        odd = (
            "nan",
            "inf",
            "-inf",
            "1e999",
            "-1",
            "2",
            "0x1",
            "1_0",
            "",
            "one",
            "٣",
            "9" * 10**6,
            "1e-999",
            "True",
            "1,0",
        )
        for k, value in enumerate(odd):
            made[f"the number {k}"] = f"{header}\n{head},{value}\n"
    content = {fault: text.encode("utf-8") for fault, text in made.items()}
    return content | {
        "utf-16": good.encode("utf-16"),
        "utf-32": good.encode("utf-32"),
        "latin-1": good.replace(name, "caf\xe9").encode("latin-1"),
        "half a letter": good.encode() + b"\xe2\x82",
        "a surrogate": good.encode() + b"\xed\xa0\x80",
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "packed": b"\x1f\x8b\x08\0" + bytes(100),
        "pickled": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    }


_STAGE = '[[stages]]\nname = "fit"\nepochs = 1\nbs = 16\n'
_MODEL = '[model]\narch = "m1"\nwidth = 0.125\n'
_PARTS = {
    "": 'name = "x"\n',
    "clips": "[clips]\ncrop_s = 0.5\n",
    "folds": "[folds]\nn = 2\n",
    "model": _MODEL,
    "stages": _STAGE,
}


def recipes() -> dict[str, bytes]:
    """Return recipes and ensembles of recipes, most of them invalid."""

    def with_(section: str, line: str) -> str:
        """Return a valid recipe with one more line, which replaces a line with the same key."""
        key = line.split("=")[0].strip()
        parts = {**_PARTS, "front_end": "[front_end]\n", "tta": "[tta]\n"}
        kept = "".join(other + "\n" for other in parts[section].splitlines() if other.split("=")[0].strip() != key)
        return "".join((kept + line + "\n") if name == section else part for name, part in parts.items())

    deep = 20_000
    made = {
        "empty": "",
        "words": "hello",
        "zero bytes": 'name = "x\0"',
        "an unclosed text": 'name = "',
        "deep arrays": "x = " + "[" * deep + "]" * deep,
        "deep tables": "x = " + "{a=" * deep + "1" + "}" * deep,
        "deep keys": ".".join("a" * deep) + " = 1",
        "deep headers": "[" + ".".join("a" * deep) + "]",
        "a long list": 'name = "x"\nstages = [' + "1," * 60_000 + "]",
        "a long number": "seed = " + "9" * 100_000,
        "too large": "#" * 300_000,
        "doubled keys": 'name = "x"\nname = "y"',
        "a list of nothing": "members = []",
        "five thousand members": "name = 'x'\n"
        + "".join(f'[[members]]\nname = "m{k}"\nrecipe = "quick"\n' for k in range(5000)),
        "a path traversal in a member": "name = 'x'\n[[members]]\nname = '../../out'\nrecipe = 'quick'\n",
        "a device as a member": "name = 'x'\n[[members]]\nname = 'm'\nrecipe = '/dev/zero.toml'\n",
        "itself as a member": "name = 'x'\n[[members]]\nname = 'm'\nrecipe = 'hostile.toml'\n",
        "changes of the wrong kind": (
            "name = 'x'\n[[members]]\nname = 'm'\nrecipe = 'quick'\nchanges = { stages = 3, front_end = 4 }\n"
        ),
        "members that are none": "members = 7\nname = 'x'\n",
        "a table for a text": "[name]\nx = 1\n",
        "stages that are none": 'name = "x"\nstages = 3\n',
        "extends nothing": 'name = "x"\n[[stages]]\nextends = "nobody"\n',
        "extends a table": 'name = "x"\n[[stages]]\nextends = { a = 1 }\n',
        "a stage named by a list": 'name = "x"\n[[stages]]\nname = ["a"]\n[[stages]]\nextends = "a"\n',
    }
    lines = {
        "": [
            "seed = -1",
            "seed = 1e30",
            "seed = nan",
            "seed = 340282366920938463463374607431768211456",
            "precision = 7",
            'name = ["x"]',
            "front_end = 3",
            "__class__ = 1",
        ],
        "clips": [
            "crop_s = inf",
            "crop_s = nan",
            "crop_s = -1",
            "crop_s = 1e308",
            "trim_db = nan",
            "trim_db = -5",
            "cache = '../../x'",
            "crop_s = 601",
        ],
        "folds": [
            "n = 100",
            "n = 2.5",
            "n = 1000000000000",
            "run_folds = [-1]",
            "run_folds = [9999999999]",
            "seed = 99999999999999999999999",
        ],
        "front_end": [
            "n_fft = 1099511627776",
            "n_fft = 0",
            "n_fft = -4",
            "hop_length = 0",
            "n_mels = 1000000000",
            "n_mels = 0",
            "sr = 0",
            "sr = 1000000000000",
            "sr = 1",
            "fmin = nan",
            "fmax = inf",
            "win_length = 1e9",
            "n_fft = 'x'",
            "n_fft = [1, 2]",
            "windows = [1099511627776]",
            "top_db = nan",
            "mean = [1, 2]",
        ],
        "model": [
            "width = 1e9",
            "width = nan",
            "width = 1e-30",
            'arch = "timm:hf-hub:evil/model"',
            'arch = "timm:local-dir:/tmp"',
            'arch = "timm:../../x"',
            'arch = "timm:"',
            'arch = "os.system"',
            'options = { pretrained = "yes" }',
            "options = { depth = 1e9 }",
            "options = { __init__ = 1 }",
            "options = { n_tags = 3 }",
        ],
        "stages": [
            "epochs = 0",
            "epochs = 1000000000000",
            "bs = 1000000000000",
            "bs = 0",
            "lr = inf",
            "lr = nan",
            "lr = -1",
            'mixup = { name = "mixup", alpha = nan }',
            'mixup = { name = ["mixup"] }',
            'mixup = { name = "mixup", path = "/etc/passwd" }',
            'augment = [{ name = "spec_augment", n = 1000000000 }]',
            'augment = [{ name = "os" }]',
            'loss = "eval"',
            "loss_options = { reduction = 3 }",
            'schedule_options = { pct_start = nan }',
            'schedule_options = { x = 1 }',
            'sampling = "mixture"',
            'sampling_options = { weights = 3 }',
            'noisy_labels = { method = "previous" }',
            "grad_accum = 100000000",
            'optimizer = "__import__"',
            "wd = nan",
            "extends = 3",
        ],
        "tta": [
            "n = 1000000000",
            "n = 10000",
            "options = { step_s = 0 }",
            "options = { step_s = nan }",
            'views = "random"\nn = 0',
            "average = 3",
        ],
    }
    for section, each in lines.items():
        made |= {f"{section or 'top'}: {line}": with_(section, line) for line in each}
    content = {fault: text.encode("utf-8", "surrogatepass") for fault, text in made.items()}
    return content | {
        "utf-16": _STAGE.encode("utf-16"),
        "latin-1": b'name = "caf\xe9"',
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
    }
