"""A plan as tables, in a terminal and on a page."""

from astro_jax.plan import tables

RECIPE = {
    "reached": 0.4, "mean_length": 0.5, "total_hours": 1.5, "total_chip_hours": 24.0, "longest_total_hours": 3.0,
    "longest_total_chip_hours": 48.0,
}  # fmt: skip
TOTALS = {"libtpu": {"plan": "0.0.42.1", "run": "0.0.42.*"}}


def test_print_plan_names_programs_whose_collectives_are_unknown(capsys):
    row = {"stage": "sft", "program": "step", "fits": True, "collectives": None}
    plan = {"topology": "v6e:2x4", "chips": 8, "hbm_gib": 31.25, "programs": [row]}
    tables.print_plan(plan | TOTALS | {"recipe": RECIPE})
    assert "libtpu does not print the program: sft step" in " ".join(capsys.readouterr().out.split())


def test_format_markdown_has_the_share_of_hbm_and_the_cost_of_a_run():
    row = {"stage": "sft", "program": "step", "peak_gib": 4.0, "at_once_gib": 5.0, "fits": True, "compile_s": 7.5}
    row |= {"tokens_per_s": 41700, "max_mfu": 0.68}
    cost = RECIPE | {"sft step": {"tokens": 2500000, "hours": 1.5, "chip_hours": 24.0, "longest_hours": 3.0}}
    cost["sft step, no prefix shared"] = {"tokens": 2500000, "hours": 9.0, "chip_hours": 144.0}
    plan = {"topology": "v5e:4x4", "chips": 16, "hbm_gib": 15.75, "mesh": {"data": 1, "fsdp": 4, "tp": 4}}
    lines = tables.format_markdown(plan | TOTALS | {"programs": [row], "recipe": cost}).splitlines()
    assert lines[0] == "v5e:4x4: 16 chips with 15.75 GiB each for programs; mesh fsdp 4, tp 4."
    assert lines[4] == "| sft | step | 4.0 | 5.0 | 32% | 41,700 | 0.68 | 7.5 |"
    assert lines[6] == "A whole run at 0.4 of the roofline's speed, samples at 0.5 of their greatest length:"
    assert lines[-4:-2] == [
        "| sft step | 2.5e+06 | 1.5 | 24.0 | 3.0 |",
        "| sft step, no prefix shared | 2.5e+06 | 9.0 | 144.0 |  |",
    ]
    assert lines[-1] == (
        "these programs take 1.5 hours, 24.0 chip-hours; if every sample has its greatest length and no tree ends "
        "early, 3.0 hours, 48.0 chip-hours."
    )


def test_the_plan_says_when_a_run_has_another_libtpu():
    plan = {"recipe": RECIPE, "libtpu": {"plan": "0.0.52", "run": "0.0.42.*"}}
    assert "compiled by libtpu 0.0.52, and a run has 0.0.42.*" in tables.total(plan)
    assert "libtpu" not in tables.total({"recipe": RECIPE} | TOTALS)
