"""A run's tables as a timeline that Perfetto opens: slices, counters and marks in the TrackEvent protobuf format."""
