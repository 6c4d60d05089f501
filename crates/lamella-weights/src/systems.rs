//! The wing's list: one line a codec or system.

mod bitstack;
mod decoupleq;
mod elutq;
mod evopress;
mod exact;
mod gptq;
mod hawq;
pub(crate) mod house;
mod lgreco;
mod progressive;
mod rtn;
mod spqr;

pub(crate) use bitstack::system as bitstack;
pub use exact::Exact;
use lamella_codec::{Registration, System};

/// Every codec of this wing that recipes can name.
pub fn codecs() -> Vec<Registration> {
    vec![
        exact::registration(),
        rtn::registration(),
        gptq::registration(),
        house::registration(),
        spqr::registration(),
        progressive::registration(),
        bitstack::registration(),
        elutq::registration(),
        decoupleq::registration(),
    ]
}

/// Every built system of this wing.
pub fn systems() -> Vec<System> {
    vec![
        hawq::system(),
        evopress::system(),
        spqr::system(),
        elutq::system(),
        decoupleq::system(),
        bitstack::system(),
        lgreco::system(),
    ]
}
