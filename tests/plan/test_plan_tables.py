"""A plan as tables, in a terminal and on a page."""

from astro_jax.plan import tables


def test_print_plan_names_programs_whose_collectives_are_unknown(capsys):
    row = {"stage": "sft", "program": "step", "fits": True, "collectives": None}
    plan = {"topology": "v6e:2x4", "chips": 8, "hbm_gib": 31.25, "programs": [row], "recipe": {"reached": 0.4}}
    tables.print_plan(plan)
    assert "libtpu does not print the program: sft step" in " ".join(capsys.readouterr().out.split())


def test_format_markdown_has_the_share_of_hbm_and_the_cost_of_a_run():
    row = {"stage": "sft", "program": "step", "peak_gib": 4.0, "at_once_gib": 5.0, "fits": True, "compile_s": 7.5}
    row |= {"tokens_per_s": 41700, "max_mfu": 0.68}
    cost = {"reached": 0.4, "sft step": {"tokens": 2500000, "hours": 1.5, "chip_hours": 24.0}}
    plan = {"topology": "v5e:4x4", "chips": 16, "hbm_gib": 15.75, "mesh": {"data": 1, "fsdp": 4, "tp": 4}}
    lines = tables.format_markdown(plan | {"programs": [row], "recipe": cost}).splitlines()
    assert lines[0] == "v5e:4x4: 16 chips with 15.75 GiB each for programs; mesh fsdp 4, tp 4."
    assert lines[4] == "| sft | step | 4.0 | 5.0 | 32% | 41,700 | 0.68 | 7.5 |"
    assert lines[6].endswith("at 0.4 of the roofline's speed:")
    assert lines[-1] == "| sft step | 2.5e+06 | 1.5 | 24.0 |"
