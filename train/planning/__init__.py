"""What will a run or a study do and need? Settings, arms, memory, disk and time, before anything starts."""
