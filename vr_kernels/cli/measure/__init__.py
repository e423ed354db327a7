"""How an operator is measured: shapes, baselines, floor, accuracy, time, memory, and the report of them."""
