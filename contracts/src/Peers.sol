// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Multicall} from "@openzeppelin/contracts/utils/Multicall.sol";

import {Bits} from "./Bits.sol";
import {Scoring} from "./Scoring.sol";
import {Treasury} from "./Treasury.sol";

/// @title Peers
/// @notice What the schemes share in which agents judge each other: they post a bond; in every round each trains a model,
///         retrieves those of the others, commits to its scores of them, then reveals these.
/// @dev Not a `Federation`: there nobody moves a version on but its owner, who judges, and a version waits for it. Here
///      nobody is trusted, the stages move on by themselves or by whoever calls `advance`, and all are judged at once.
///      What the two share is the treasury and how agents sign.
///
///      Agents are known by their number, their place in the order of accounts, and sets of them are bits of a word. An
///      agent acts by a transaction of its own or by a signature that anyone relays; what is wrong with one item of a
///      batch costs that item. What remains of their bonds is the same for all agents that are left, and not stored.
abstract contract Peers is Treasury, EIP712, Multicall {
    using Bits for uint256;
    using SafeERC20 for IERC20;

    /// @notice What the experiment is doing.
    enum Stage {
        Enrol,
        Train,
        Retrieve,
        Commit,
        Reveal,
        Score,
        Finished
    }

    /// @notice Why an item of a batch was passed over.
    enum Fault {
        None,
        NotInTheRun,
        SecondTime,
        BadSignature,
        Malformed,
        WrongOpening,
        BondNotPosted
    }

    /// @notice What is agreed before the experiment, whatever the scheme is.
    /// @param digest SHA-256 of the whole plan.
    /// @param rounds R.
    /// @param quorum How many agents must post their bond at least; else the experiment ends before it began.
    /// @param bond What each agent posts, in the token's smallest unit.
    /// @param seconds_ How long each stage from `Enrol` to `Score` lasts at most.
    struct Frame {
        bytes32 digest;
        uint32 rounds;
        uint8 quorum;
        uint96 bond;
        uint32[6] seconds_;
    }

    /// @notice An agent posts its bond. Without a permit (EIP-2612; no deadline) it has approved this contract before.
    struct Entry {
        uint8 agent;
        uint256 deadline;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// @notice An agent has trained a model.
    /// @param digest SHA-256 of the model's canonical bytes.
    /// @param cid Binary CIDv1 of the model, sealed to all agents.
    /// @param lot The hash (EIP-712) of Lot(uint32 round,uint8 agent,bytes32 secret); zero if auditors are not drawn.
    /// @param r With `vs`: its compact signature (EIP-2098) of Contribution(uint32 round,bytes32 digest,bytes cid,bytes32 lot).
    ///        Of no account here and below if the agent itself sends the transaction, unless auditors are drawn.
    struct SignedContribution {
        uint8 agent;
        bytes32 digest;
        bytes cid;
        bytes32 lot;
        bytes32 r;
        bytes32 vs;
    }

    /// @notice An agent says whose models it could retrieve and validate.
    /// @param retrieved A bit for each agent.
    /// @param secret What opens its lot; zero if auditors are not drawn.
    /// @param r With `vs`: its signature of Retrieval(uint32 round,uint256 retrieved,bytes32 secret).
    struct SignedRetrieval {
        uint8 agent;
        uint256 retrieved;
        bytes32 secret;
        bytes32 r;
        bytes32 vs;
    }

    /// @notice An agent commits to its scores.
    /// @param commitment The hash (EIP-712) of Scores(uint32 round,uint8 agent,bytes row,bytes32 salt).
    /// @param r With `vs`: its signature of Commitment(uint32 round,bytes32 commitment).
    struct SignedCommitment {
        uint8 agent;
        bytes32 commitment;
        bytes32 r;
        bytes32 vs;
    }

    /// @notice An agent's scores; that they open its commitment is all the proof there need be.
    /// @param row A big-endian uint16 for each agent of the experiment, also those that were eliminated. If auditors are
    ///        drawn, for each that follows it in the circle, in order.
    struct Opening {
        uint8 agent;
        bytes row;
        bytes32 salt;
    }

    /// @notice Where the experiment stands. One storage slot, the only one that every act of an agent reads and writes.
    /// @param deadline Time of the first block that is too late.
    /// @param live The agents that are in the run: before it began all that may be.
    /// @param acted Those that have done what the current stage asks of them.
    struct Progress {
        Stage stage;
        uint40 deadline;
        uint104 live;
        uint104 acted;
    }

    /// @dev One storage slot: a refund costs one update of it.
    struct Agent {
        address account;
        uint96 refund;
    }

    /// @dev What is read of `_retrievals` so far: often the first word is enough.
    struct Tally {
        uint256[4] words;
        uint256 read;
    }

    /// @notice The most agents of an experiment: the sets of more would not fit into the slot of `Progress`.
    uint256 public constant MAX_AGENTS = 104;

    /// @notice The score of a perfect model.
    uint256 public constant ONE = Scoring.ONE;

    bytes32 private constant CONTRIBUTION_TYPEHASH =
        keccak256("Contribution(uint32 round,bytes32 digest,bytes cid,bytes32 lot)");
    bytes32 private constant LOT_TYPEHASH = keccak256("Lot(uint32 round,uint8 agent,bytes32 secret)");
    bytes32 private constant RETRIEVAL_TYPEHASH = keccak256("Retrieval(uint32 round,uint256 retrieved,bytes32 secret)");
    bytes32 private constant COMMITMENT_TYPEHASH = keccak256("Commitment(uint32 round,bytes32 commitment)");
    bytes32 private constant SCORES_TYPEHASH = keccak256("Scores(uint32 round,uint8 agent,bytes row,bytes32 salt)");

    /// @dev Length of a binary CIDv1 of raw bytes under SHA-256.
    uint256 internal constant CID_LENGTH = 36;

    /// @dev Stands where no commitment was ever made: written when the bond is posted, so that no round pays for a fresh slot.
    bytes32 private constant NO_COMMITMENT = bytes32(uint256(1));

    /// @notice The account that deployed the experiment. It relays and pays for gas; it has no say.
    address public immutable owner;

    /// @notice SHA-256 of the experiment's plan, all that is agreed but not enforced here.
    bytes32 public immutable planDigest;

    /// @notice R.
    uint32 public immutable rounds;

    /// @notice How many agents must post their bond at least.
    uint256 public immutable quorum;

    /// @notice What each agent posts, in the token's smallest unit.
    uint96 public immutable bond;

    /// @notice How many agents may post a bond.
    uint256 public immutable agentCount;

    /// @notice Where the experiment stands.
    Progress public progress;

    /// @notice The current round, from 0 on.
    uint32 public round;

    /// @notice The bonds lost in the current round.
    uint96 public forfeited;

    /// @notice The agents among which auditors were drawn last.
    uint104 public drawn;

    /// @notice What they were drawn by: all secrets of the round, combined by exclusive or, so that each changes it and their
    ///         order does not matter.
    bytes32 public seed;

    /// @notice All that is not yet claimed of what was posted.
    uint256 public held;

    /// @notice The agents, in the order of their accounts, and what was refunded to each and is not yet claimed.
    mapping(uint256 agent => Agent state) public agents;

    /// @notice The last commitment of each agent; if auditors are drawn, its lot until it commits.
    mapping(uint256 agent => bytes32 commitment) public commitments;

    /// @dev Eight sets of agents, two in a word. The first: those that retrieved more than half of the models. The others
    ///      count for all models at once: agent k is in the set j + 1 if bit j is set of how many retrieved its model.
    ///      Stored inverted: a word that is never zero is cheaper to write.
    uint256[4] private _retrievals = [type(uint256).max, type(uint256).max, type(uint256).max, type(uint256).max];

    uint32[6] private _seconds;

    /// @notice Agent `agent` posted its bond. As below the round is that of the last `StageOpened`.
    event Joined(uint8 agent, address indexed account);

    /// @notice `stage` of `round` lasts until `deadline`, or until all agents in `live` have acted.
    event StageOpened(uint32 indexed round, Stage indexed stage, uint40 deadline, uint256 live);

    /// @notice Agent `agent` trained a model.
    event Contributed(uint8 agent, bytes32 digest, bytes cid, bytes32 lot);

    /// @notice Agent `agent` retrieved these models.
    event Retrieved(uint8 agent, uint256 retrieved, bytes32 secret);

    /// @notice The agents in `live` stand in the circle that `Circle.draw` makes of `seed`.
    event Drawn(uint32 indexed round, bytes32 seed, uint256 live);

    /// @notice Agent `agent` committed to its scores.
    event Committed(uint8 agent, bytes32 commitment);

    /// @notice The signature of what the next event says. Told if auditors are drawn.
    event Signed(bytes32 r, bytes32 vs);

    /// @notice Agent `agent` gave these scores. Who calls `score` needs them.
    event Revealed(uint8 agent, bytes row, bytes32 salt);

    /// @notice An item was passed over; `agent` is a mere claim.
    event Rejected(Stage stage, uint8 agent, Fault fault);

    /// @notice The agents `out` did not do what `stage` asks, and lost what was left of their bonds.
    event Eliminated(uint32 indexed round, Stage indexed stage, uint256 out);

    /// @notice All agents in `live` gave these scores.
    event AllRevealed(uint32 indexed round, uint256 live, bytes rows, bytes32[] salts);

    /// @notice `pot` was shared among the agents in `live`, and each got `rest` of its bond besides.
    event Refunded(uint32 indexed round, uint256 live, uint256 pot, uint256 rest);

    /// @notice The owner says that `digest` is the model that `round` begins with. Every agent can check it.
    event ModelPublished(uint32 indexed round, bytes32 digest, bytes cid);

    /// @notice Only the owner may do this.
    error NotOwner(address caller);

    /// @notice The experiment is at `stage`.
    error WrongStage(Stage stage);

    /// @notice The stage ended at `deadline`.
    error TooLate(uint40 deadline);

    /// @notice The stage lasts until `deadline`, or until all have acted.
    error TooEarly(uint40 deadline);

    /// @notice There must be from one to `MAX_AGENTS`.
    error BadAgentCount(uint256 count);

    /// @notice Accounts must be in ascending order, none of them zero, none twice.
    error NotAscending(address account);

    /// @notice There must be a round at least, a quorum that can be reached, time for each stage, amounts that fit, and what the
    ///         scheme asks for besides.
    error BadTerms();

    /// @notice There must be one salt for each agent that is left.
    error WrongSaltCount(uint256 count);

    /// @notice Row or salt of `agent` are not what it committed to.
    error DoesNotOpen(uint256 agent);

    /// @param accounts The agents, in ascending order.
    constructor(IERC20 token_, Frame memory frame, address[] memory accounts)
        Treasury(token_)
        EIP712("flower-chain", "1")
    {
        uint256 count = accounts.length;
        if (count == 0 || count > MAX_AGENTS) revert BadAgentCount(count);
        if (frame.rounds == 0 || frame.quorum == 0 || frame.quorum > count) revert BadTerms();
        // The bonds of all fit into the amounts that are stored.
        if (frame.bond * count > type(uint96).max) revert BadTerms();
        for (uint256 i; i < frame.seconds_.length; ++i) {
            if (frame.seconds_[i] == 0) revert BadTerms();
        }
        owner = msg.sender;
        planDigest = frame.digest;
        rounds = frame.rounds;
        quorum = frame.quorum;
        bond = frame.bond;
        agentCount = count;
        _seconds = frame.seconds_;
        _enlist(accounts);
        _open(Stage.Enrol, type(uint104).max >> (MAX_AGENTS - count));
    }

    /// @notice Agents post their bonds. Whoever signed a permit of the bond for this contract, or approved it, wants to join.
    /// @dev One bond that can't be had must not fail the others, so that what was had is noted after the transfers. A token
    ///      that calls back meanwhile finds all that matters guarded or, in this stage, refused.
    // slither-disable-next-line reentrancy-no-eth,reentrancy-benign
    function join(Entry[] calldata batch) public virtual nonReentrant {
        Progress memory now_ = _during(Stage.Enrol);
        uint256 joined = now_.acted;
        for (uint256 i; i < batch.length; ++i) {
            uint8 agent = batch[i].agent;
            Fault fault = _standing(agent, now_.live, joined);
            if (fault == Fault.None && !_post(batch[i])) fault = Fault.BondNotPosted;
            if (_reject(agent, fault)) continue;
            joined = joined.add(agent);
            commitments[agent] = NO_COMMITMENT;
            emit Joined(agent, agents[agent].account);
        }
        held += (joined ^ now_.acted).count() * bond;
        _act(now_, joined);
    }

    /// @notice Stage 1: agents record the models that they trained.
    function submit(SignedContribution[] calldata batch) external {
        Progress memory now_ = _during(Stage.Train);
        uint256 done = now_.acted;
        for (uint256 i; i < batch.length; ++i) {
            SignedContribution calldata item = batch[i];
            Fault fault = _standing(item.agent, now_.live, done);
            bool wellFormed = item.cid.length == CID_LENGTH && (item.lot == 0) == (_drawnAuditors() == 0);
            if (fault == Fault.None && !wellFormed) fault = Fault.Malformed;
            address account = agents[item.agent].account;
            if (fault == Fault.None && _mustSign(account)) {
                bytes32 hash =
                    keccak256(abi.encode(CONTRIBUTION_TYPEHASH, round, item.digest, keccak256(item.cid), item.lot));
                fault = _checkSignature(account, hash, item.r, item.vs);
            }
            if (_reject(item.agent, fault)) continue;
            done = done.add(item.agent);
            if (_drawnAuditors() != 0) commitments[item.agent] = item.lot;
            emit Contributed(item.agent, item.digest, item.cid, item.lot);
        }
        _act(now_, done);
    }

    /// @notice Stage 2: agents report whose models they could retrieve. Their own counts whether they say so or not: the
    ///         honest ones would not be enough for each other otherwise. If auditors are drawn, it is by what they tell here
    ///         and had to choose before: nobody knows all of it before all models are there.
    function retrieve(SignedRetrieval[] calldata batch) external {
        Progress memory now_ = _during(Stage.Retrieve);
        uint256 done = now_.acted;
        uint256 all = now_.live;
        uint256 half = all.count() / 2;
        Tally memory tally = Tally([~_retrievals[0], 0, 0, 0], 1);
        bytes32 secrets = _drawnAuditors() == 0 || done == 0 ? bytes32(0) : seed;
        for (uint256 i; i < batch.length; ++i) {
            SignedRetrieval calldata item = batch[i];
            Fault fault = _standing(item.agent, all, done);
            if (fault == Fault.None && !_opensLot(item.agent, item.secret)) fault = Fault.WrongOpening;
            address account = agents[item.agent].account;
            if (fault == Fault.None && _mustSign(account)) {
                bytes32 hash = keccak256(abi.encode(RETRIEVAL_TYPEHASH, round, item.retrieved, item.secret));
                fault = _checkSignature(account, hash, item.r, item.vs);
            }
            if (_reject(item.agent, fault)) continue;
            done = done.add(item.agent);
            uint256 retrieved = (item.retrieved & all).add(item.agent);
            if (retrieved.count() > half) tally.words[0] = tally.words[0].add(item.agent);
            _countRetrievers(tally, retrieved);
            secrets ^= item.secret;
            emit Retrieved(item.agent, item.retrieved, item.secret);
        }
        for (uint256 j; j < tally.read; ++j) {
            _retrievals[j] = ~tally.words[j];
        }
        if (_drawnAuditors() != 0) seed = secrets;
        _act(now_, done);
    }

    /// @notice Stage 3: agents commit to their scores.
    function commit(SignedCommitment[] calldata batch) external {
        Progress memory now_ = _during(Stage.Commit);
        uint256 done = now_.acted;
        for (uint256 i; i < batch.length; ++i) {
            SignedCommitment calldata item = batch[i];
            Fault fault = _standing(item.agent, now_.live, done);
            address account = agents[item.agent].account;
            if (fault == Fault.None && _mustSign(account)) {
                bytes32 hash = keccak256(abi.encode(COMMITMENT_TYPEHASH, round, item.commitment));
                fault = _checkSignature(account, hash, item.r, item.vs);
            }
            if (_reject(item.agent, fault)) continue;
            done = done.add(item.agent);
            commitments[item.agent] = item.commitment;
            emit Committed(item.agent, item.commitment);
        }
        _act(now_, done);
    }

    /// @notice Stage 4: agents reveal their scores. Anyone may send them who knows them; `score` takes them just as well.
    function reveal(Opening[] calldata batch) external {
        Progress memory now_ = _during(Stage.Reveal);
        uint256 done = now_.acted;
        uint256 length = 2 * _scoresInARow();
        for (uint256 i; i < batch.length; ++i) {
            Opening calldata item = batch[i];
            Fault fault = _standing(item.agent, now_.live, done);
            if (fault == Fault.None && !_opens(item.agent, length, item.row, item.salt)) fault = Fault.WrongOpening;
            if (_reject(item.agent, fault)) continue;
            done = done.add(item.agent);
            emit Revealed(item.agent, item.row, item.salt);
        }
        _act(now_, done);
    }

    /// @notice Ends a stage whose deadline has passed. Who did not act is eliminated. A round whose scores nobody had
    ///         computed in time is not paid by score.
    function advance() external nonReentrant {
        Progress memory now_ = progress;
        if (now_.stage == Stage.Finished) revert WrongStage(now_.stage);
        // A validator shifts the time by seconds, a stage lasts minutes or hours.
        // slither-disable-next-line timestamp
        if (block.timestamp < now_.deadline) revert TooEarly(now_.deadline); // forge-lint: disable-line(block-timestamp)
        _close(now_.stage, now_.live, now_.acted);
    }

    /// @notice Moves what was refunded to agents to the credits of their accounts, from where `withdraw` sends it. Anyone
    ///         may call it.
    function claim(uint256[] calldata who) external nonReentrant {
        uint256 sum = 0;
        for (uint256 i; i < who.length; ++i) {
            Agent storage agent = agents[who[i]];
            uint256 amount = agent.refund;
            if (amount == 0) continue;
            agent.refund = 0;
            sum += amount;
            _credit(agent.account, amount);
        }
        held -= sum;
    }

    /// @notice Credits the owner with what came in beside the bonds, so that nothing is ever locked.
    function sweep() external nonReentrant {
        uint256 there = pool();
        if (there > held) _credit(owner, there - held);
    }

    /// @notice Announces the model that a round begins with. The contract does not know better; the agents do.
    function publish(uint32 round_, bytes32 digest, bytes calldata cid) external {
        if (msg.sender != owner) revert NotOwner(msg.sender);
        emit ModelPublished(round_, digest, cid);
    }

    // --- items of a batch ---

    /// @dev Whether `agent` may act in the current stage: one of `all` in the run that is not among those that have.
    function _standing(uint256 agent, uint256 all, uint256 done) internal pure returns (Fault) {
        if (!all.has(agent)) return Fault.NotInTheRun;
        if (done.has(agent)) return Fault.SecondTime;
        return Fault.None;
    }

    /// @dev Whether what `account` says must be signed: not if it sends that itself. If auditors are drawn it must also then:
    ///      the others draw by what they know that it said.
    function _mustSign(address account) internal view returns (bool) {
        return msg.sender != account || _drawnAuditors() != 0;
    }

    /// @dev Whether `account` signed `structHash`, the last thing that may be wrong with an item. If auditors are drawn the
    ///      signature is told, so that anybody can pass on what was said, also if another contract sent it here.
    function _checkSignature(address account, bytes32 structHash, bytes32 r, bytes32 vs) internal returns (Fault) {
        // What is left out is the fault's detail.
        // slither-disable-next-line unused-return
        (address signer, ECDSA.RecoverError problem,) = ECDSA.tryRecover(_hashTypedDataV4(structHash), r, vs);
        if (problem != ECDSA.RecoverError.NoError || signer != account) return Fault.BadSignature;
        if (_drawnAuditors() != 0) emit Signed(r, vs);
        return Fault.None;
    }

    /// @dev Notes what is wrong with an item, if anything is.
    function _reject(uint8 agent, Fault fault) internal returns (bool) {
        if (fault == Fault.None) return false;
        emit Rejected(progress.stage, agent, fault);
        return true;
    }

    /// @dev Takes the bond. A permit that fails may have been used by somebody else: what counts is the allowance.
    function _post(Entry calldata entry) private returns (bool) {
        address account = agents[entry.agent].account;
        if (entry.deadline != 0) {
            // A bad permit costs its own item only.
            // slither-disable-next-line calls-loop
            try IERC20Permit(address(token))
                .permit(account, address(this), bond, entry.deadline, entry.v, entry.r, entry.s) {}
                catch {}
        }
        // The account gave its allowance for this and nothing else.
        // slither-disable-next-line arbitrary-send-erc20
        return token.trySafeTransferFrom(account, address(this), bond);
    }

    /// @dev Adds one to the counts of all models in `retrieved`, carrying from set to set.
    function _countRetrievers(Tally memory tally, uint256 retrieved) private view {
        for (uint256 j = 1; retrieved != 0; ++j) {
            if (j / 2 == tally.read) tally.words[tally.read++] = ~_retrievals[j / 2];
            uint256 shift = 128 * (j % 2);
            uint256 word = tally.words[j / 2];
            tally.words[j / 2] = word ^ (retrieved << shift);
            retrieved &= word >> shift;
        }
    }

    /// @dev Whether `secret` is what `agent` chose before all models were there.
    function _opensLot(uint256 agent, bytes32 secret) private view returns (bool) {
        if (_drawnAuditors() == 0) return secret == 0;
        return commitments[agent] == _hashTypedDataV4(keccak256(abi.encode(LOT_TYPEHASH, round, agent, secret)));
    }

    /// @dev By how many agents each model is audited, if they are drawn; else zero.
    function _drawnAuditors() internal view virtual returns (uint256);

    /// @dev How many scores a row has in this round.
    function _scoresInARow() internal view virtual returns (uint256);

    /// @dev Whether row and salt are what `agent` committed to, and the row of the right `length`. The hash binds them to this
    ///      contract, round and agent.
    function _opens(uint256 agent, uint256 length, bytes calldata row, bytes32 salt) private view returns (bool) {
        bytes32 structHash = keccak256(abi.encode(SCORES_TYPEHASH, round, agent, keccak256(row), salt));
        return row.length == length && commitments[agent] == _hashTypedDataV4(structHash);
    }

    /// @dev The agents whose scores can be computed now: also in the stage in which they reveal them.
    function _scorable() internal view returns (uint256) {
        return _during(progress.stage == Stage.Reveal ? Stage.Reveal : Stage.Score).live;
    }

    /// @dev Refuses `rows` unless they are what the agents in `all` committed to; notes them if they were not all revealed.
    ///      Whoever scored them has checked how long they are together.
    function _checkOpenings(uint256 all, bytes calldata rows, bytes32[] calldata salts) internal {
        uint256 stride = 2 * _scoresInARow();
        if (salts.length != all.count()) revert WrongSaltCount(salts.length);
        uint256 agent = 0;
        for (uint256 i; i < salts.length; ++i) {
            agent = all.next(agent);
            if (!_opens(agent, stride, rows[i * stride:(i + 1) * stride], salts[i])) revert DoesNotOpen(agent);
            ++agent;
        }
        if (progress.stage == Stage.Reveal) emit AllRevealed(round, all, rows, salts);
    }

    // --- stages ---

    /// @dev Refuses unless the experiment is at `stage` and not too late.
    function _during(Stage stage) private view returns (Progress memory now_) {
        now_ = progress;
        if (now_.stage != stage) revert WrongStage(now_.stage);
        // slither-disable-next-line timestamp
        if (block.timestamp >= now_.deadline) revert TooLate(now_.deadline); // forge-lint: disable-line(block-timestamp)
    }

    /// @dev Notes who has acted, and closes the stage when all have.
    function _act(Progress memory now_, uint256 done) private {
        if (done == now_.live) return _close(now_.stage, now_.live, done);
        // There are at most `MAX_AGENTS`.
        // forge-lint: disable-next-line(unsafe-typecast)
        progress.acted = uint104(done);
    }

    /// @dev Ends `stage`, in which of the agents in `all` those in `done` have acted.
    function _close(Stage stage, uint256 all, uint256 done) private {
        if (stage == Stage.Enrol) return _begin(done);
        if (stage == Stage.Score) return _endUnscored(all);
        _eliminate(stage, all, stage == Stage.Retrieve ? _closeRetrieval(all) : done);
    }

    /// @dev The agents that joined are those of the run, if they are enough.
    function _begin(uint256 joined) private {
        uint256 count = joined.count();
        if (count >= quorum) return _open(Stage.Train, joined);
        _finish(joined, new uint256[](count), 0, 0, bond);
    }

    /// @dev Those of `all` that retrieved more than half of the models and whose models more than half of the agents
    ///      retrieved. Compares all counts with that at once, from the highest bit on.
    function _closeRetrieval(uint256 all) private returns (uint256 survivors) {
        uint256 half = all.count() / 2;
        uint256 more = 0;
        uint256 equal = type(uint256).max;
        for (uint256 j = 7; j > 0; --j) {
            uint256 set = ~_retrievals[j / 2] >> 128 * (j % 2);
            if (half.has(j - 1)) {
                equal &= set;
            } else {
                more |= equal & set;
                equal &= ~set;
            }
        }
        survivors = all & ~_retrievals[0] & more;
        for (uint256 i; i < 4; ++i) {
            _retrievals[i] = type(uint256).max;
        }
        if (_drawnAuditors() == 0) return survivors;
        // There are at most `MAX_AGENTS`.
        // forge-lint: disable-next-line(unsafe-typecast)
        drawn = uint104(survivors);
        emit Drawn(round, seed, survivors);
    }

    /// @dev Goes on with the `survivors` of `all`. With nobody left there are no others that what is lost could go to: the
    ///      experiment ends, and those that were left before get back what was theirs.
    function _eliminate(Stage stage, uint256 all, uint256 survivors) private {
        if (survivors == 0) return _finish(all, new uint256[](all.count()), 0, forfeited, _restOfBond());
        _forfeit(stage, all ^ survivors);
        _open(Stage(uint8(stage) + 1), survivors);
    }

    /// @dev What the agents in `out` had left of their bonds goes into the pot of this round.
    function _forfeit(Stage stage, uint256 out) internal {
        if (out == 0) return;
        // The constructor made sure that all bonds together fit.
        // forge-lint: disable-next-line(unsafe-typecast)
        forfeited += uint96(out.count() * _restOfBond());
        emit Eliminated(round, stage, out);
    }

    /// @dev Ends a round whose scores nobody computed in time.
    function _endUnscored(uint256 all) internal virtual;

    /// @dev Ends the experiment: shares `pot` by `weights`, and gives back the `rest` of each bond.
    function _finish(uint256 all, uint256[] memory weights, uint256 sum, uint256 pot, uint256 rest) internal virtual {
        _refund(all, weights, sum, pot, rest);
        forfeited = 0;
        _open(Stage.Finished, all);
    }

    /// @dev Begins `stage`. It lasts its full time from here on, so that nobody is late because nobody called `advance`.
    function _open(Stage stage, uint256 all) internal virtual {
        uint40 deadline = 0;
        if (stage != Stage.Finished) deadline = uint40(block.timestamp) + _seconds[uint8(stage)];
        // There are at most `MAX_AGENTS`.
        // forge-lint: disable-next-line(unsafe-typecast)
        progress = Progress(stage, deadline, uint104(all), 0);
        emit StageOpened(round, stage, deadline, all);
    }

    // --- money ---

    /// @dev What an agent that is left has left of its bond in this round.
    function _restOfBond() internal view virtual returns (uint256);

    /// @dev Shares `pot` among the agents in `all` by `weights`, equally if these are all zero, and adds `rest` to each
    ///      share. A share is the difference of two sums, each rounded down: together they are the pot exactly.
    function _refund(uint256 all, uint256[] memory weights, uint256 sum, uint256 pot, uint256 rest) internal {
        bool equally = sum == 0;
        if (equally) sum = weights.length;
        uint256 passed = 0;
        uint256 before = 0;
        uint256 agent = 0;
        for (uint256 i; i < weights.length; ++i) {
            agent = all.next(agent);
            passed += equally ? 1 : weights[i];
            uint256 upTo = pot * passed / sum;
            // The constructor made sure that all that is paid fits.
            // forge-lint: disable-next-line(unsafe-typecast)
            agents[agent].refund += uint96(upTo - before + rest);
            before = upTo;
            ++agent;
        }
        emit Refunded(round, all, pot, rest);
    }

    /// @dev Notes the agents. Ascending order makes sure that none is there twice.
    function _enlist(address[] memory accounts) private {
        address last = address(0);
        for (uint256 i; i < accounts.length; ++i) {
            if (accounts[i] <= last) revert NotAscending(accounts[i]);
            last = accounts[i];
            agents[i].account = last;
        }
    }
}
