"""Drive MindSpore's semi-automatic partitioner without devices, and run what it produced in numpy.

`compiler` compiles a Cell for one rank of a mesh, `mindir` reads the graph that came out, `interpreter` executes the
graphs of all ranks in lockstep and records every collective.  The numpy semantics of the operators are in `operators`.
"""
