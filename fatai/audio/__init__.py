"""Sound before any learning: files, waveforms, spectrograms, channels."""
