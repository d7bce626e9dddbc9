"""Chat models as judges: a client for servers, a model in this process, questions, and what replies say."""

from .client import Answer, Chat, ChatClient, Question, check_recordable
from .judge import Asker, ChatJudge, Task


__all__ = ["Answer", "Asker", "Chat", "ChatClient", "ChatJudge", "Question", "Task", "check_recordable"]
