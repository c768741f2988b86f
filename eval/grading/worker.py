"""The process in which `mathematics.py` asks math-verify; it reads a pair a line and is no command for people."""

from eval.grading.mathematics import serve

if __name__ == "__main__":
    serve()
