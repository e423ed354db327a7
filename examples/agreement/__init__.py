"""Each method beside its authors' own code: the same weights and inputs, and how far the results are apart.

``python -m examples.agreement --help`` says what it runs; README.md beside this file explains.
"""
