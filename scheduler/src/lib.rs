//! Admission, deadlines, priority and routing as pure state; time is an argument.
