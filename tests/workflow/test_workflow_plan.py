"""From file to compiled workflow: what steps read, write, save and draw."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from medpipe.errors import UsageError, WorkflowError
from medpipe.workflow.compiled import CompiledWorkflow, QcSpec, SaveSpec
from medpipe.workflow.plan import check_step_names, compile_workflow
from medpipe.workflow.spec import parse_workflow

HEAD = """\
name = "w"
version = "1"
summary = "s"
[inputs.ct]
[inputs.mr]
optional = true
[[step]]
id = "load"
use = "load_volume"
in = ["ct", "mr"]
"""


def compiled(steps: str, *overrides: str, folder: Path | None = None) -> CompiledWorkflow:
    return compile_workflow(parse_workflow(HEAD + steps, "w.toml", folder), overrides)


def problems(steps: str, *overrides: str, folder: Path | None = None) -> list[str]:
    with pytest.raises(WorkflowError) as caught:
        compiled(steps, *overrides, folder=folder)
    return caught.value.lines()


def step(text: str) -> str:
    """Write a step on several lines from one."""
    return "[[step]]\n" + text.replace("; ", "\n") + "\n"


def test_everything_is_filled_in(lab: Path) -> None:
    workflow = compiled(
        step('use = "threshold"; in = "ct"; out = "mask"; with = { lower = 1 }')
        + step(
            'use = "blend"; in = "mr"; with = { mask = "mask", amount = 1 }; save = "mr.nii.gz"; '
            'qc = { overlay = "mask", window_hu = [0, 80] }'
        )
        + step('use = "count"; in = "mr"; out = "n"; with = { least = 2 }; save = "n.json"')
        + step(
            'use = "split"; in = "mr"; out = "part"; with = { rest = "other" }; qc = "mosaic"; '
            'save = [{ key = "other", file = "o.nii", dtype = "int16" }, '
            '{ key = "part", file = "p.nii.gz" }]'
        )
        + step('use = "model"; in = "other"; qc = "none"')
    )
    load, threshold, blend, count, split, model = workflow.steps
    assert workflow.inputs["mr"].optional
    assert not workflow.inputs["ct"].optional
    assert (load.inputs, load.outputs, load.id, load.use) == (
        ("ct", "mr"),
        ("ct", "mr"),
        "load",
        "load_volume",
    )
    assert threshold.target == "medpipe.steps.mask:Thresholdd"
    assert dict(threshold.params) == {"lower": 1.0, "upper": None}
    assert threshold.makes == "labels"
    assert threshold.keys_written() == ("mask",)
    assert dict(blend.params) == {
        "mask": "mask",
        "amount": 1.0,
        "size": [3, 4],
        "mode": "linear",
        "flag": False,
        "count": 1,
        "note": "",
    }
    assert blend.keys_read() == ("mr", "mask")
    assert blend.save == (SaveSpec("mr", "mr.nii.gz"),)
    assert blend.qc == QcSpec("mr", "mosaic", "mask", {"window_hu": [0.0, 80.0]})
    assert blend.version == "7"
    assert count.makes == "table"
    assert split.keys_written() == ("part", "other")
    assert split.save == (SaveSpec("other", "o.nii", "int16"), SaveSpec("part", "p.nii.gz"))
    assert split.qc == QcSpec("part", "mosaic")
    assert (model.qc, model.random) == (None, True)
    assert "lab" not in sys.modules


# One step after the load; the mistake is on the line that is marked.
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('use = "orientt" #!; in = "ct"', 'unknown step "orientt". Next: did you mean "orient"?'),
        ('use = "orient"; in = "cr" #!', 'no input or step above makes the key "cr". Next: known'),
        ('use = "blend"; in = "ct"; with = { mask = "no" } #!', 'makes the key "no"'),
        ('use = "blend"; in = "ct"; with = { mask = "a b" } #!', 'parameter "mask": expected a k'),
        ('use = "blend"; in = "ct"; with = { mode = "cubic" } #!', 'expected "linear" | "nearest"'),
        ('use = "blend"; in = "ct"; with = { amout = 1 } #!', 'did you mean "amount"?'),
        ('use = "blend"; in = "ct"; with = { amount = true } #!', "expected float, got true"),
        ('use = "blend"; in = "ct"; with = { amount = nan } #!', "expected float, got nan"),
        ('use = "blend"; in = "ct"; with = { note = 2020-01-01 } #!', "expected str, got datetime"),
        ('use = "blend"; in = "ct"; with = { keys = "ct" } #!', 'has no parameter "keys"'),
        ('use = "blend"; in = "ct"; with = { _target_ = "os.system" } #!', '"_target_"'),
        ('use = "count" #!; in = "ct"', 'step "count" needs the parameter "least" (int)'),
        ('use = "orient"; id = "load" #!; in = "ct"', 'two steps are called "load"'),
        ('use = "orient"; in = "ct"; out = ["a", "b"] #!', '"in" names 1 keys and "out" 2'),
        ('use = "load_volume"; in = "ct" #!', 'the key "ct" is loaded already'),
        ('use = "orient"; in = "ct"; save = "../x.nii" #!', '"../x.nii" is not a safe file name'),
        ('use = "orient"; in = "ct"; save = "/etc/x.nii" #!', "is not a safe file name"),
        ('use = "orient"; in = "ct"; save = "a/b.nii" #!', "is not a safe file name"),
        ('use = "orient"; in = "ct"; save = ".hidden.nii" #!', "is not a safe file name"),
        ('use = "orient"; in = "ct"; save = "-x.nii" #!', "is not a safe file name"),
        ('use = "orient"; in = "ct"; save = "x\\u0000.nii" #!', "is not a safe file name"),
        ('use = "orient"; in = "ct"; save = "x.nii\\n" #!', "is not a safe file name"),
        (f'use = "orient"; in = "ct"; save = "{"x" * 130}.nii" #!', "is not a safe file name"),
        ('use = "orient"; in = "ct"; save = "x.png" #!', "a volume is saved as .nii.gz or .nii"),
        ('use = "threshold"; in = "ct"; save = "x.json" #!', "a label map is saved as .nii.gz"),
        ('use = "orient"; in = "ct"; save = "qc-x.nii" #!', "is a name that medpipe uses itself"),
        ('use = "orient"; in = "ct"; save = { file = "x.nii", key = "mr" } #!', "does not write"),
        ('use = "orient"; in = ["ct", "mr"]; save = "x.nii" #!', '"save" must say which of the k'),
        ('use = "orient"; in = "ct"; qc = { overlay = "no" } #!', 'overlay "no" of the picture is'),
        ('use = "orient"; in = "ct"; qc = { key = "no" } #!', 'key "no" of the picture is not kn'),
    ],
)
def test_each_mistake_is_named_with_its_line(lab: Path, text: str, message: str) -> None:
    lines = (HEAD + step(text)).split("\n")
    line = next(i for i, s in enumerate(lines, 1) if s.endswith("#!"))
    found = problems(step(text))
    assert len(found) == 1, found
    assert found[0].startswith(f"w.toml:{line}: "), found
    assert message in found[0]


COUNT = 'use = "count"; with = { least = 1 }; in = "ct"; '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('out = "n"; save = "n.nii" #!', "a table is saved as .json or .csv"),
        ('out = "n"; save = "case.json" #!', '"case.json" is a name that medpipe uses itself'),
        ('out = "n"; save = "Case.JSON.json" #!', ""),
        ('out = "n"; save = "object.json" #!', '"object.json" is a name that medpipe uses itself'),
        ('out = "n"; save = "a.nii.json" #!', '"a.nii.json" collides with the sidecar'),
        ('out = "n"; save = "A.nii.json" #!', '"A.nii.json" collides with the sidecar'),
        ('out = "n"; save = { file = "n.json", dtype = "int16" } #!', "a table has no dtype"),
        ('out = "n"; qc = "mosaic" #!', 'key "n" of the picture is a table'),
        ('out = "n"\n[[step]]\nuse = "fill_holes"; in = "n" #!', 'the key "n" holds a table here'),
        (
            'out = "n"\n[[step]]\nuse = "blend"; with = { mask = "n" } #!; in = "mr"',
            "holds a table",
        ),
    ],
)
def test_tables(lab: Path, text: str, message: str) -> None:
    text = step('use = "orient"; in = "ct"; save = "a.nii"') + step(COUNT + text)
    if not message:
        assert compiled(text)
        return
    lines = (HEAD + text).split("\n")
    line = next(i for i, s in enumerate(lines, 1) if s.endswith("#!"))
    found = problems(text)
    assert len(found) == 1, found
    assert found[0].startswith(f"w.toml:{line}: ")
    assert message in found[0]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("a.nii", "a.nii", 'two steps save "a.nii"'),
        ("a.nii", "A.NII", "a volume is saved as"),
        ("a.nii.gz", "A.nii.gz", 'two steps save "A.nii.gz"'),
    ],
)
def test_two_files_of_one_name(first: str, second: str, message: str) -> None:
    text = step(f'use = "orient"; in = "ct"; save = "{first}"')
    text += step(f'use = "resample"; in = "ct"; with = {{ spacing_mm = 1 }}; save = "{second}"')
    assert message in "\n".join(problems(text))


def test_the_sidecar_collision_is_seen_in_either_order(lab: Path) -> None:
    text = step(COUNT + 'out = "n"; save = "a.nii.json"')
    text += step('use = "orient"; in = "ct"; save = "a.nii"')
    assert '"a.nii" collides with the sidecar' in problems(text)[0]


def test_two_pictures_of_one_name() -> None:
    text = step('id = "a"; use = "orient"; in = "ct"; out = "b-c"; qc = "mosaic"')
    text += step('id = "a-b"; use = "orient"; in = "ct"; out = "c"; qc = "mosaic"')
    assert "two pictures would be called qc-a-b-c.png" in problems(text)[0]


def test_an_input_must_be_loaded_and_read() -> None:
    text = HEAD.replace('use = "load_volume"', 'use = "orient"')
    with pytest.raises(WorkflowError) as caught:
        compile_workflow(parse_workflow(text, "w.toml"))
    assert caught.value.lines() == [
        f'w.toml:10: the input "{key}" is not loaded yet. Next: '
        'put a step with use = "load_volume" above'
        for key in ("ct", "mr")
    ]
    text = HEAD.replace('["ct", "mr"]', '"ct"')
    with pytest.raises(WorkflowError) as caught:
        compile_workflow(parse_workflow(text, "w.toml"))
    assert caught.value.lines() == ['w.toml:5: input "mr" is read by no step']


def test_problems_of_shape_and_of_meaning_come_together_and_no_problem_follows_from_another(
    lab: Path,
) -> None:
    text = step('use = "orient"; in = 3; out = "a"') + step(
        'use = "blend"; in = "a"; with = { amount = "x" }; save = "x"'
    )
    assert [line.split(": ")[0] for line in problems(text)] == [
        "w.toml:13",
        "w.toml:18",
        "w.toml:19",
    ]


def test_overrides_reach_the_step_and_are_named_when_wrong(lab: Path) -> None:
    text = step('use = "blend"; in = "ct"; with = { amount = "x" }')
    assert compiled(text, "blend.amount=0.25").steps[1].params["amount"] == 0.25
    found = problems(text, "blend.amount=much", "blend.moode=1")
    assert found == [
        'w.toml:14: --set blend.moode: step "blend" has no parameter "moode". Next: did you mean '
        '"mode"?',
        'w.toml:14: --set blend.amount: parameter "amount": expected float, got "much"',
    ]
    with pytest.raises(UsageError, match='no step "bland"'):
        compiled(text, "bland.amount=1")


def model(path: str) -> str:
    return step(f'use = "model"; in = "ct"; with = {{ weights = "{path}" }}')


def test_a_file_is_known_by_its_content(lab: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.pt").write_bytes(b"weights")
    (tmp_path / "b.pt").write_bytes(b"weights")
    sha = hashlib.sha256(b"weights").hexdigest()
    one = compiled(model("sub/a.pt"), folder=tmp_path)
    two = compiled(model("b.pt"), folder=tmp_path)
    found = one.steps[1]
    assert dict(found.files) == {"weights": sha}
    assert dict(found.params) == {"weights": f"sha256:{sha}"}
    assert found.arguments() == {"weights": str((tmp_path / "sub" / "a.pt").resolve())}
    assert one.digest() == two.digest()
    (tmp_path / "b.pt").write_bytes(b"other")
    assert compiled(model("b.pt"), folder=tmp_path).digest() != one.digest()


@pytest.mark.parametrize("path", ["../x.pt", "sub/../../x.pt", "{outside}", "link.pt", "dir/x.pt"])
def test_a_workflow_cannot_name_a_file_outside_its_folder(
    lab: Path, tmp_path: Path, path: str
) -> None:
    folder = tmp_path / "w"
    (folder / "sub").mkdir(parents=True)
    outside = tmp_path / "x.pt"
    outside.write_bytes(b"secret")
    (folder / "link.pt").symlink_to(outside)
    (folder / "dir").symlink_to(tmp_path)
    found = problems(model(path.replace("{outside}", str(outside))), folder=folder)
    assert len(found) == 1
    assert found[0].startswith("w.toml:14: ")
    assert "workflow's folder" in found[0]
    # The user may, on the command line.
    given = compiled(model("y.pt"), f"model.weights={outside}", folder=folder).steps[1]
    assert given.files["weights"] == hashlib.sha256(b"secret").hexdigest()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.pt", 'there is no file "none.pt"'),
        ("", "expected the path of a file"),
        ("x\\u0000", "expected the path of a file"),
        (".", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("loop", "there is no file"),
    ],
)
def test_a_file_that_cannot_be_read(lab: Path, tmp_path: Path, path: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert message in problems(model(path), folder=tmp_path)[0]


def test_names_cannot_write_to_the_terminal(lab: Path) -> None:
    odd = '"\\u001b[31m\\nx" = 1'
    text = step(f'use = "blend"; in = "ct"; with = {{ {odd} }}; {odd}')
    text += step('use = "blend"; in = "ct"; id = "b"; with = { "\\u001b\\n" = 1 }')
    found = problems(text)
    assert len(found) == 2
    assert all(line.isprintable() for line in found)


def test_values_that_other_tools_would_run_stay_texts(lab: Path) -> None:
    """MONAI bundles evaluate "$…" and "_target_", YAML has !!python: here they are words."""
    for hostile in [
        "$import os; os.system('x')",
        "$__import__('os')",
        "@step",
        "!!python/x",
        "%a%",
    ]:
        note = hostile.replace("; ", ";")
        workflow = compiled(step(f'use = "blend"; in = "ct"; with = {{ note = "{note}" }}'))
        assert workflow.steps[1].params["note"] == note


def test_a_broken_third_party_step_is_named_at_its_line(install) -> None:  # type: ignore[no-untyped-def]
    install("rot", {"rot.py": "class Rotd(:"}, steps={"rot": "rot:Rotd"})
    found = problems(step('use = "rot"; in = "ct"'))
    assert found == ['w.toml:12: step "rot" cannot be used (rot:Rotd): module rot does not parse']


def test_step_names_are_checked_without_a_workflow() -> None:
    check_step_names(["orient", "load_volume"])
    with pytest.raises(UsageError, match='unknown step "nope"'):
        check_step_names(["orient", "nope"])


def test_names_of_labels_reach_the_picture(tmp_path):
    path = tmp_path / "named.toml"
    path.write_text(
        'name = "named"\nversion = "1"\nsummary = "s"\n[inputs.image]\nkind = "volume"\n'
        '[[step]]\nuse = "load_volume"\nin = "image"\n'
        '[[step]]\nuse = "threshold"\nin = "image"\nout = "mask"\nwith = { lower = 0.5 }\n'
        'qc = { kind = "mosaic", key = "image", overlay = "mask", labels = ["lumen", "wall"] }\n'
    )
    step = compile_workflow(path).steps[-1]
    assert step.qc.options == {"labels": {"1": "lumen", "2": "wall"}}
