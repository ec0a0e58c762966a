"""`astro plan`: compile a run's programs ahead of time for a TPU slice, without a TPU.

The imports between the modules point one way:

- `planner` compiles the programs and collects memory, roofline and collectives; `mesh_search` tries many meshes.
- `run_cost` adds up the hours of a whole run; `tables` prints a plan; `collectives` reads a compiled program's text.
- `programs` lowers each program of training and sampling; `work` holds the formulas of their FLOPs and bytes.
- `topology` has the figures of the TPU chips and the devices to compile for.
"""
