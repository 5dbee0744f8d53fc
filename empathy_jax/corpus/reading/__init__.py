"""From the bytes of a dump to question records: formats, encodings, tables, dialogues."""
