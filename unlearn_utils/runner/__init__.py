"""The notebooks of a profile, executed in order: what `./run_all.sh` does.

In go the numbered notebooks and a profile's name; out come executed notebooks, their figures and
tables, a stamp for each notebook, so that what did not change is not executed again, and a
comparison with the committed tables. May import core, cache, profiles and data; it imports no
torch, for the kernels do the work.
"""
