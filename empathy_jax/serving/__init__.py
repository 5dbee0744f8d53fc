"""The model in use: answers to files of questions, to one in the terminal, and over HTTP."""
