"""The papers' effect in small, on real data: what compression loses, and what Vision Remember brings back.

``python -m examples.reproduction --help`` says what it runs; README.md beside this file explains.
"""
