//! Every value of every engine, by way of every other engine and back (P7).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "matrix/checks.rs"]
mod checks;
#[path = "matrix/collations.rs"]
mod collations;
#[path = "matrix/frameworks.rs"]
mod frameworks;
#[path = "matrix/journey.rs"]
mod journey;
#[path = "matrix/names.rs"]
mod names;
#[path = "matrix/page.rs"]
mod page;
#[path = "matrix/place.rs"]
mod place;
#[path = "matrix/samples.rs"]
mod samples;
#[path = "matrix/shapes.rs"]
mod shapes;
#[path = "matrix/spellings.rs"]
mod spellings;
