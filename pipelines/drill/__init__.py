"""The drill: a short training under a real fault, compared bit for bit with the same training undisturbed.

Real processes, real kills, a real S3 protocol server: nothing here is mocked, and nothing in the product knows that it
is being drilled. `faults` lists the faults, one function each; `verdict` decides whether a fault left a trace.
"""
