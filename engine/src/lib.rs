//! A bundle made runnable: plans, sessions, pre- and post-processing, self-test.
