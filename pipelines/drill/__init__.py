"""The drill: a short training under a real fault, held bit for bit against the same training undisturbed.

Real processes, real kills, a real S3 protocol server: nothing here is mocked, and nothing in the product knows that it
is being drilled. `faults` lists what can happen, one function each; `compare` says whether it left a trace.
"""
