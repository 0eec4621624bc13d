//! The publisher's side of updates: TUF repositories, keys, rollouts.
