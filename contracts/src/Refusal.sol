// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @notice Why a contribution is refused. The order is that of `flower_chain.records.Refusal`; a test compares the two.
/// @dev Up to `Worthless`, and from `OverBudget` on, the contract alone decides. From `Unreadable` to `NoAnswer` the owner
///      alone does, from what it found off chain, and answers for it. In between, both may: the contract for contributions,
///      the owner for introductions.
enum Refusal {
    None,
    StaleVersion,
    FutureVersion,
    VersionClosed,
    SecondContribution,
    BadDataCost,
    BadEvidence,
    Worthless,
    BadSignature,
    NotEnrolled,
    Unreadable,
    NotStored,
    WrongCid,
    Oversize,
    Unsealable,
    WrongDigest,
    WrongFormat,
    NotFinite,
    FalseEvidence,
    DeviceError,
    NoAnswer,
    OverBudget,
    BudgetDecreased
}
