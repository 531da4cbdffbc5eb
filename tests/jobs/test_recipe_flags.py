"""The recipe from flags and from a file: what is impossible is named by its key before anything starts."""

import pytest


@pytest.mark.parametrize(
    ("flag", "values", "said"),
    [
        ("elastic.sigma-px", ("12", "6"), "the range 12 to 6 is empty; give the lower number first"),
        ("missing-patch.side-px", ("0", "5"), "the range 0 to 5 must stay within 1 to 4096"),
        ("shot-noise.gain", ("-1", "0"), "the range -1 to 0 must stay within 0 to 100"),
        ("hole.probability", ("1.5",), "should be less than or equal to 1"),
    ],
)
def test_an_impossible_range_is_named_by_its_key(call_job, tmp_path, flag, values, said):
    entry, setting = flag.replace("-", "_").split(".")
    (tmp_path / "run.yaml").write_text(f"recipe:\n  {entry}:\n    {setting}: {_yaml(values)}\n")
    given = ["--images", "i.tif", "--labels", "l.tif", "--cache", tmp_path / "c"]
    for how in ([f"--recipe.{flag}", *values], ["--config", tmp_path / "run.yaml"]):
        ended = call_job("augment", *given, *how)
        assert (ended.code, ended.out) == (2, "")
        (line,) = ended.err.splitlines()
        assert line.startswith(f"augment: --recipe.{flag} was given ")
        assert said in line
    assert not (tmp_path / "c").exists()


def test_kinds_of_noise_that_exclude_each_other_are_named(call_job, tmp_path):
    given = ["--images", "i.tif", "--labels", "l.tif", "--cache", tmp_path / "c", "--recipe-name", "notebook"]
    ended = call_job("augment", *given, "--recipe.shot-noise.probability", "0.7")
    assert ended.code == 2
    assert "--recipe: shot_noise and uniform_noise exclude each other, but their probabilities sum to 1.2" in ended.err


def test_new_entries_print_as_yaml(call_job, capsys):
    given = ["--images", "i.tif", "--labels", "l.tif", "--cache", "c", "--print-config"]
    with pytest.raises(SystemExit) as left:
        call_job("augment", *given, "--recipe.charging.probability", "0.1", "--recipe.charging.bump", "-5", "5")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "  charging:\n    probability: 0.1\n" in printed
    assert "    bump:\n    - -5\n    - 5\n" in printed


def _yaml(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"
