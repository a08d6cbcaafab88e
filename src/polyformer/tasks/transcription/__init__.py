"""Speech to text with Whisper (Radford et al., 2022): windows, timestamps, words, languages, subtitles."""

from __future__ import annotations

from polyformer.tasks.transcription.languages import LANGUAGES as LANGUAGES
from polyformer.tasks.transcription.results import FORMATS as FORMATS
from polyformer.tasks.transcription.results import Segment as Segment
from polyformer.tasks.transcription.results import Transcript as Transcript
from polyformer.tasks.transcription.results import Word as Word
from polyformer.tasks.transcription.transcribe import detect_language as detect_language
from polyformer.tasks.transcription.transcribe import stream_segments as stream_segments
from polyformer.tasks.transcription.transcribe import transcribe as transcribe
