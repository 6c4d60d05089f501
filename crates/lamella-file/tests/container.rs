//! Laws of the container, through its public interface.

#[path = "container/corruption.rs"]
mod corruption;
#[path = "container/cutting.rs"]
mod cutting;
#[path = "container/golden.rs"]
mod golden;
#[path = "container/sample.rs"]
mod sample;
#[path = "container/size.rs"]
mod size;
