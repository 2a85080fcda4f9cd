//! Split tests of adapter versions, from the description to the decision. One program: linking is what costs.

mod assign;
mod decide;
mod description;
mod sequence;
mod simulation;
mod statistics;
mod support;
