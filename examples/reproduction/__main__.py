"""The command: one run, all that are missing, the encoder, the times, the tables, or the models that are shipped."""

from __future__ import annotations

import argparse
import os

from examples.reproduction.rows import ROWS, SEEDS, TABLES

COMMANDS = ("run", "missing", "encoder", "times", "tables", "ship")


def main() -> None:
    # What a row's record says of time holds for one thread; torch reads it when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from examples.reproduction.tasks import TASKS, find_task

    parser = argparse.ArgumentParser(prog="python -m examples.reproduction", description=__doc__)
    parser.add_argument("command", nargs="?", default="run", choices=COMMANDS)
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--row", choices=ROWS, help="of run")
    parser.add_argument("--seed", type=int, default=SEEDS[0], help="of run")
    parser.add_argument(
        "--keep-features",
        action="store_true",
        help="of run and missing: the encoder's, for the next rows of a seed: less time, and some 15 GB a seed",
    )
    parser.add_argument(
        "--table", choices=TABLES, action="append", help="of tables; may be repeated; all of the task, if left out"
    )
    parser.add_argument("--partial", action="store_true", help="of tables: with the records that there are")
    arguments = parser.parse_args()
    if arguments.command == "run":
        from examples.reproduction.run import run

        if arguments.row is None:
            parser.error("run needs --row")
        record = run(arguments.task, arguments.row, arguments.seed, keep_features=arguments.keep_features)
        print(f"{record['row']}, seed {record['seed']}: {record['accuracy']}")
    elif arguments.command == "missing":
        from examples.reproduction.run import run_missing

        run_missing(arguments.task, keep_features=arguments.keep_features)
    elif arguments.command == "encoder":
        from examples.reproduction.encoder import train_encoder

        print(train_encoder(find_task(arguments.task))["accuracy_by_label"])
    elif arguments.command == "times":
        from examples.reproduction.times import measure_times

        for row, spread in measure_times(arguments.task)["ratio"].items():
            print(f"{row}: {spread['median']:.2f} times pool's, {spread['low']:.2f}-{spread['high']:.2f}")
    elif arguments.command == "ship":
        from examples.reproduction.ship import ship

        ship(arguments.task)
    else:
        from examples.reproduction.tables import write_tables

        print(write_tables(arguments.task, arguments.table, partial=arguments.partial))


if __name__ == "__main__":
    main()
