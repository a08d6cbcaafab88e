"""A few sentences with names, numbers, accents and punctuation."""

SENTENCES = [
    "Ada Lovelace lived in London and wrote the first program.",
    "The quick brown fox jumps over the lazy dog, again and again!",
    "Paris is the capital of France; Berlin is that of Germany.",
    "A sunny day in Zürich: naïve café visitors drink tea for 3.50 euros.",
    "Stock markets fell sharply on Monday after the announcement.",
    "Who wrote the program? She did, in 1843, says the museum.",
]
