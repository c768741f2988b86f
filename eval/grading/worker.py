"""Child process of `mathematics.py` that runs math-verify on one pair per line; not a user command."""

from eval.grading.mathematics import serve

if __name__ == "__main__":
    serve()
