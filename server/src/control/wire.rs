//! The one place that turns refusals of the control thread into codes of the wire.
//!
//! Owns: which code each error has. The words are the error's own.

use corelog_schemas::{ErrorCode, Failure};

use corelog_replication::controller::PlacementError;
use corelog_replication::controller::admin as decide;
use corelog_schemas::messages::TopicRef;

use super::admin::{
    AlterTopicError, CreatePartitionsError, CreateTopicError, PartitionCountError, UnknownTopic,
};
use super::options::TopicOptionError;

fn with_code(code: ErrorCode, error: &impl std::fmt::Display) -> Failure {
    Failure::new(code, error.to_string())
}

impl From<CreateTopicError> for Failure {
    fn from(error: CreateTopicError) -> Self {
        let code = match &error {
            CreateTopicError::Name(_) => ErrorCode::InvalidTopicName,
            CreateTopicError::Exists { .. } => ErrorCode::TopicAlreadyExists,
            CreateTopicError::Partitions(inner) => return inner.clone().into(),
            CreateTopicError::Option(inner) => return inner.clone().into(),
            CreateTopicError::NoDataDir => ErrorCode::DiskFull,
        };
        with_code(code, &error)
    }
}

impl From<PartitionCountError> for Failure {
    fn from(error: PartitionCountError) -> Self {
        let code = match &error {
            PartitionCountError::Topic { .. }
            | PartitionCountError::Nodes { .. }
            | PartitionCountError::NotMore { .. } => ErrorCode::InvalidPartitionCount,
        };
        with_code(code, &error)
    }
}

impl From<TopicOptionError> for Failure {
    fn from(error: TopicOptionError) -> Self {
        let code = match &error {
            TopicOptionError::Unknown { .. }
            | TopicOptionError::Value { .. }
            | TopicOptionError::Contradiction(_) => ErrorCode::InvalidTopicOption,
        };
        with_code(code, &error)
    }
}

impl From<UnknownTopic> for Failure {
    fn from(error: UnknownTopic) -> Self {
        let code = match &error.topic {
            TopicRef::Id(_) => ErrorCode::UnknownTopicId,
            TopicRef::Name(_) => ErrorCode::UnknownTopicOrPartition,
        };
        with_code(code, &error)
    }
}

impl From<AlterTopicError> for Failure {
    fn from(error: AlterTopicError) -> Self {
        match error {
            AlterTopicError::Unknown(inner) => inner.into(),
            AlterTopicError::Option(inner) => inner.into(),
        }
    }
}

impl From<CreatePartitionsError> for Failure {
    fn from(error: CreatePartitionsError) -> Self {
        match &error {
            CreatePartitionsError::Unknown(inner) => inner.clone().into(),
            CreatePartitionsError::Partitions(inner) => inner.clone().into(),
            CreatePartitionsError::NoDataDir => with_code(ErrorCode::DiskFull, &error),
        }
    }
}

/// A refusal of the decisions about the cluster, as the wire says it.
pub(super) trait WireError {
    /// Its code and its words.
    fn failure(&self) -> Failure;
}

impl WireError for PlacementError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::TooFewNodes { .. } => ErrorCode::InvalidReplicationFactor,
        };
        with_code(code, self)
    }
}

impl WireError for decide::UnknownTopic {
    fn failure(&self) -> Failure {
        with_code(ErrorCode::UnknownTopicId, self)
    }
}

impl WireError for decide::CreateTopicError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::Exists { .. } => ErrorCode::TopicAlreadyExists,
            Self::NameInUse { .. } => ErrorCode::MetadataUnavailable,
            Self::NoPartitions => ErrorCode::InvalidPartitionCount,
            Self::Placement(inner) => return inner.failure(),
        };
        with_code(code, self)
    }
}

impl WireError for decide::CreatePartitionsError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::Unknown(inner) => return inner.failure(),
            Self::Fewer { .. } => ErrorCode::InvalidPartitionCount,
            Self::Placement(inner) => return inner.failure(),
        };
        with_code(code, self)
    }
}

impl WireError for decide::UnknownPartition {
    fn failure(&self) -> Failure {
        with_code(ErrorCode::UnknownTopicOrPartition, self)
    }
}

impl WireError for decide::DrainError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::UnknownNode { .. } => ErrorCode::UnknownNode,
        };
        with_code(code, self)
    }
}

impl WireError for decide::ForgetNodeError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::UnknownNode { .. } => ErrorCode::UnknownNode,
            Self::Runs { .. } | Self::HasReplicas { .. } => ErrorCode::InvalidRequest,
        };
        with_code(code, self)
    }
}

impl WireError for decide::AddReplicaError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::Unknown(inner) => return inner.failure(),
            Self::HasOne { .. } => ErrorCode::InvalidReplica,
            Self::NodeUnavailable { .. } => ErrorCode::UnknownNode,
            Self::Placement(inner) => return inner.failure(),
        };
        with_code(code, self)
    }
}

impl WireError for decide::RemoveReplicaError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::Unknown(inner) => return inner.failure(),
            Self::NoReplica { .. } | Self::LastReplica | Self::LastInSync | Self::NoSuccessor => {
                ErrorCode::InvalidReplica
            }
        };
        with_code(code, self)
    }
}

impl WireError for decide::SetReplicasError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::Unknown(inner) => return inner.failure(),
            Self::None => ErrorCode::InvalidReplicationFactor,
            Self::Placement(inner) => return inner.failure(),
            Self::Remove { .. } => ErrorCode::InvalidReplica,
        };
        with_code(code, self)
    }
}

impl WireError for decide::ElectPreferredError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::Unknown(inner) => return inner.failure(),
            Self::Offline => ErrorCode::PartitionOffline,
            Self::Unfit { .. } => ErrorCode::ElectionRefused,
        };
        with_code(code, self)
    }
}

impl WireError for decide::ElectUncleanError {
    fn failure(&self) -> Failure {
        let code = match self {
            Self::Unknown(inner) => return inner.failure(),
            Self::CleanPossible { .. } | Self::NoReplica { .. } | Self::Unfit { .. } | Self::NobodyRuns => {
                ErrorCode::ElectionRefused
            }
        };
        with_code(code, self)
    }
}
