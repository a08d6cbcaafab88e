"""What a person wants done: vectors, labels, names, answers, translations, transcripts. One task a file."""
